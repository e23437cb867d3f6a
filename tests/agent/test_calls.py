# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's direct calls: programs that make no sense, that die, that never end, and some that work."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.agent import calls, command, program
from pytest_seves.agent.loop import Loop

LocalAgent = Any

PAGE = {"do": "memory", "as": "page", "size": 4096}
NO_IOCTL = {"do": "ioctl", "on": "fd", "request": 0xAE00}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A step that opens a file in place of a device: no machine of ours need have one."""
    monkeypatch.setattr(program, "DEVICES", ("/dev/null",))
    return {"do": "open", "path": "/dev/null", "as": "fd"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "wanted a list"),
        ([], "wanted a list of 1 to"),
        ([PAGE, "close"], "#1 'close': wanted an object"),
        ([{"do": "dance"}], "#0 .*nothing that can be done; there is memory, peek"),
        ([{"do": "open"}], "#0 .*wanted as, path"),
        ([{"do": "misc", "on": "vm"}], "#0 .*wanted none, and allowed none"),
        ([{"do": "open", "path": "/etc/shadow", "as": "f"}], "#0 .*wanted /dev/kvm or /dev/sev"),
        ([PAGE, PAGE], "#1 .*'page': the name is in use"),
        ([{**PAGE, "size": 5}], "#0 .*wanted pages of 4096 bytes"),
        ([{**PAGE, "size": True}], "#0 .*size True: wanted an integer"),
        ([{**PAGE, "size": 1 << 40}], "#0 .*at most"),
        ([{**PAGE, "size": 1 << 28}, {**PAGE, "as": "b"}], "#1 .*memory in all"),
        ([{**PAGE, "hex": "0"}], "#0 .*non-hexadecimal"),
        ([{**PAGE, "hex": "00" * 4097}], "#0 .*do not fit"),
        ([{"do": "close", "on": "vm"}], "#0 .*no such descriptor is open"),
        ([PAGE, {"do": "close", "on": "page"}], "#1 .*no such descriptor is open"),
        ([{"do": "peek", "of": "page", "size": 1}], "#0 .*no such memory"),
        ([PAGE, {"do": "peek", "of": "page", "size": 4097}], "#1 .*are beyond its 4096"),
        ([PAGE, {"do": "peek", "of": "page", "size": 1, "offset": -1}], "#1 .*offset -1: wanted an integer"),
    ],
)
def test_bad_programs_are_refused(agent: LocalAgent, steps: Any, message: str) -> None:
    """Nothing runs, and the answer says which step is wrong, and how."""
    error = agent.call("calls", program=steps, timeout_s=5)["error"]
    assert error["kind"] == "ValueError"
    with pytest.raises(ValueError, match=message):
        program.check(steps)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"arg": 1, "hex": ""}, "exclude each other"),
        ({"arg": 1 << 64}, "wanted an integer of 64 bits"),
        ({"hex": "00" * 8, "pointers": [[0, "page"]]}, "pointer .*wanted"),
        ({"hex": "00" * 8, "pointers": [[1, "page", 0]]}, "pointer .*wanted"),
        ({"hex": "00" * 8, "pointers": [[-1, "page", 0]]}, "pointer .*wanted"),
        ({"hex": "00" * 8, "pointers": [[0, "other", 0]]}, "no such memory"),
        ({"hex": "00" * 8, "pointers": [[0, "page", 4097]]}, "beyond"),
        ({"as": "fd"}, "the name is in use"),
    ],
)
def test_bad_requests_are_refused(device: dict[str, Any], step: dict[str, Any], message: str) -> None:
    """An argument is a number or a structure, and its pointers stay within both ends."""
    with pytest.raises(ValueError, match=f"step #2 .*{message}"):
        program.check([device, PAGE, {**NO_IOCTL, **step}])


def test_a_crash_is_an_error(device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that dies takes no agent with it; the reply tells the signal."""
    monkeypatch.setattr(calls._Machine, "_close", lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    kind, text = failure([device, {"do": "close", "on": "fd"}], timeout_s=5)
    assert kind == "Crashed"
    assert "signal" in text


def test_a_program_that_never_ends(device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline kills it."""
    monkeypatch.setattr(calls._Machine, "_close", lambda *_: signal.pause())
    assert failure([device, {"do": "close", "on": "fd"}], timeout_s=0.2)[0] == "DeadlineExceeded"


def failure(steps: list[Any], timeout_s: float) -> tuple[str, str]:
    """Kind and text of the error that a program ends with, run as the agent runs it."""
    loop, told = Loop(), []
    command.call(
        loop,
        lambda result: told.append(("done", str(result))),
        lambda kind, text, _: told.append((kind, text)),
        function=calls.run,
        args={"program": program.check(steps)},
        timeout_s=timeout_s,
    )
    try:
        while not told:
            loop.turn()
    finally:
        loop.close()
    return told[0]


def test_a_device_that_is_not_there(agent: LocalAgent) -> None:
    """A refusal is an answer; what needed the descriptor names the step that was refused."""
    steps = [
        {"do": "open", "path": "/dev/sev", "as": "sev"},
        PAGE,
        {**NO_IOCTL, "on": "sev", "as": "vm"},
        {"do": "close", "on": "vm"},
        {"do": "peek", "of": "page", "size": 1},
    ]
    if os.path.exists("/dev/sev"):
        pytest.skip("this machine has /dev/sev")
    assert agent.call("calls", program=steps, timeout_s=5)["ok"]["answers"] == [
        {"result": -errno.ENOENT, "errno": "ENOENT"},
        {"result": 0, "errno": None},
        {"not_run": 0},
        {"not_run": 0},
        {"result": 0, "errno": None, "out": "00"},
    ]


@pytest.mark.parametrize(
    ("needed", "then"),
    [(True, {"not_run": 1}), (False, {"result": 0, "errno": None})],
    ids=["needed", "free"],
)
def test_a_needed_step_ends_the_program(device: dict[str, Any], needed: bool, then: dict[str, Any]) -> None:
    """Nothing runs after it was refused; without need for it, all does."""
    steps = [device, {**NO_IOCTL, "needed": needed}, {"do": "close", "on": "fd"}]
    answers = calls.run({"program": program.check(steps)})["answers"]
    assert answers[1]["errno"] == "ENOTTY"
    assert answers[2] == then


def test_a_name_can_be_used_again(device: dict[str, Any]) -> None:
    """After its descriptor was closed."""
    steps = [device, {"do": "close", "on": "fd"}] * 3
    answers = calls.run({"program": program.check(steps)})["answers"]
    assert {answer["result"] for answer in answers} == {0}


def test_ten_mebibytes_come_back_whole(agent: LocalAgent) -> None:
    """A large answer is no reason to lose one."""
    size = 10 << 20
    steps = [{"do": "memory", "as": "m", "size": size, "hex": "5a"}, {"do": "peek", "of": "m", "size": size}]
    out = bytes.fromhex(agent.call("calls", program=steps, timeout_s=20)["ok"]["answers"][1]["out"])
    assert out == b"\x5a".ljust(size, b"\0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KINDS = st.sampled_from(["memory", "peek", "open", "ioctl", "sev", "issue", "run", "close", "misc"])
KEYS = ["as", "on", "of", "path", "size", "hex", "arg", "pointers", "request", "command", "sev", "needed"]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(KEYS), JSON).flatmap(
            lambda step: st.builds(lambda kind: {**step, "do": kind}, KINDS | JSON)
        )
        | JSON,
        max_size=4,
    )
)
def test_nonsense_is_a_value_error(steps: list[Any]) -> None:
    """Whatever JSON arrives is a program or a ValueError, never another exception."""
    with contextlib.suppress(ValueError):
        assert program.check(steps) == steps
