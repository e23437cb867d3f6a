# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches: a VMM's descriptors, what it says, and how it ends. Small programs stand for the VMM."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.agent.standing import QUIET, Standing

LocalAgent = Any
Stand = Callable[..., Standing]
#: A VMM that says no more, and lasts.
MUTE = "import os, time; os.close(3); time.sleep(600)"
NEVER = {**QUIET, "ends": "never"}


def request(program: str, **options: Any) -> dict[str, Any]:
    """Arguments that launch a Python program as the VMM."""
    argv = [sys.executable, "-c", program]
    return {"argv": argv, "script": QUIET, "mode": "stop", "timeout_s": 60, **options}


def left(result: dict[str, Any]) -> dict[str, Any]:
    """All that a launch left, its timeline as a list of events."""
    packed = zlib.decompress(base64.b64decode(result.pop("timeline_z")))
    return {**result, "timeline": [json.loads(line) for line in packed.splitlines()]}


def observe(agent: LocalAgent, program: str, **options: Any) -> dict[str, Any]:
    """Launch a Python program as the VMM; all that it left."""
    return left(agent.call("observe", **request(program, **options))["ok"])


def said(kept: dict[str, Any]) -> bytes:
    """The bytes of a bounded stream that fits."""
    assert kept["dropped"] == 0
    return base64.b64decode(kept["head"]) + base64.b64decode(kept["tail"])


def test_a_program_that_is_not_there(agent: LocalAgent) -> None:
    """It cannot be executed: an error of that launch, no crash."""
    result = agent.call("observe", argv=["/no/such/vmm"], script=QUIET, timeout_s=10)["ok"]
    assert "/no/such/vmm" in result["error"]
    assert result["exit"] is None or result["exit"] == {"status": 127}


def test_a_bad_rule(agent: LocalAgent) -> None:
    """A sabotage rule that makes no sense ends the launch with the recorder's complaint."""
    assert "explode" in observe(agent, "pass", rules=[{"name": "x", "action": "explode"}])["error"]


def test_a_recorder_that_dies(agent: LocalAgent, standing: Stand) -> None:
    """A killed recorder is noticed at once, and the VMM goes with it."""
    vmm = standing()
    number = agent.ask("observe", **vmm.request)
    pid, recorder = vmm.pids()
    pidfd = os.pidfd_open(pid)
    os.kill(recorder, signal.SIGKILL)
    result = agent.receive(lambda frame: frame.get("id") == number)["ok"]
    assert "the recorder ended with {'signal': 9" in result["error"]
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)


def test_a_vmm_that_never_ends(agent: LocalAgent) -> None:
    """It is killed at the launch's deadline, which is told with all that it left."""
    start = time.monotonic()
    result = observe(agent, "import time; time.sleep(600)", timeout_s=1)
    assert time.monotonic() - start < 5
    assert result["killed"] is True
    assert result["exit"]["signal"] == signal.SIGKILL
    assert result["timeline"][-1]["end"] is True
    assert result["phase"] == "waiting for the QMP greeting"


def test_a_vmm_that_hangs_up_and_does_not_end(agent: LocalAgent) -> None:
    """It gets a little time, not all that is left."""
    start = time.monotonic()
    result = observe(agent, MUTE)
    assert time.monotonic() - start < 10
    assert (result["killed"], result["exit"]["signal"]) == (True, signal.SIGKILL)


def test_the_deadline_of_a_launch_that_runs_on(agent: LocalAgent) -> None:
    """One that nobody ends is answered for when its conversation is over, and ends at its own deadline."""
    told = agent.call("observe", **request(MUTE, script=NEVER, timeout_s=2))["ok"]
    assert (told["launch"], told["phase"]) == (1, "waiting for the QMP greeting")
    assert 0 < told["left_s"] <= 2
    assert agent.call("wait", launch=1, timeout_s=0.1)["ok"] == {"ended": False}
    assert agent.call("wait", launch=1, timeout_s=20)["ok"] == {"ended": True}
    assert agent.call("wait", launch=1, timeout_s=20)["ok"] == {"ended": True}


def test_who_waits_learns_of_an_end(agent: LocalAgent, standing: Stand) -> None:
    """A launch that runs on is waited for by several at once, and ends by itself."""
    vmm = standing()
    argv = [*vmm.request["argv"]]
    argv[2] = "import os; os.close(3)\n" + argv[2]
    assert agent.call("observe", **{**vmm.request, "argv": argv, "script": NEVER})["ok"]["launch"] == 1
    waiting = [agent.ask("wait", launch=1, timeout_s=30) for _ in range(2)]
    os.kill(vmm.pids()[0], signal.SIGTERM)
    for number in waiting:
        assert agent.receive(lambda frame, n=number: frame.get("id") == n)["ok"] == {"ended": True}


def test_descriptors(agent: LocalAgent) -> None:
    """The VMM has stdin from /dev/null, two pipes, two sockets, and nothing else."""
    program = (
        "import os\nfor n in range(100):\n"
        "    try: print(n, os.readlink(f'/proc/self/fd/{n}').split(':')[0])\n"
        "    except FileNotFoundError: pass"
    )
    listed = said(observe(agent, program)["stdout"]).decode()
    assert listed.splitlines() == ["0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 socket"]


def test_everything_it_said(agent: LocalAgent) -> None:
    """stdout, stderr, console and QMP come back, with the exit status and the timeline."""
    greeting = '{"QMP": {"version": {}, "capabilities": []}}\r\n'
    program = (
        "import os, sys; os.write(4, b'SeaBIOS'); print('out'); print('err', file=sys.stderr)\n"
        f"os.write(3, {greeting.encode()!r}); os.write(3, os.read(3, 100)); sys.exit(7)"
    )
    result = observe(agent, program, env={"EXTRA": "1"}, cwd="/")
    assert result["exit"] == {"status": 7}
    assert said(result["stdout"]) == b"out\n"
    assert said(result["stderr"]) == b"err\n"
    assert said(result["console"]) == b"SeaBIOS"
    told = {way: "".join(text for _, to, text in result["qmp"] if to == way) for way in ("in", "out")}
    asked = '{"execute":"qmp_capabilities","arguments":{}}'
    assert told == {"in": asked, "out": greeting + asked}
    assert [entry[0] for entry in result["qmp"]] == sorted(entry[0] for entry in result["qmp"])
    assert result["timeline"][0]["format"] == "seves-timeline/1"
    assert result["timeline"][-1]["exit"] == {"status": 7}
    assert (result["error"], result["killed"]) == (None, False)


@pytest.mark.parametrize("fd", [1, 2, 4], ids=["stdout", "stderr", "console"])
def test_floods_are_bounded(agent: LocalAgent, fd: int) -> None:
    """More than the limit is counted, not kept, and holds nobody up."""
    program = (
        f"import os\nfor n in range(128):\n    data = bytes([n]) * 65536\n"
        f"    while data:\n        data = data[os.write({fd}, data):]"
    )
    kept = observe(agent, program, limit=1 << 20)[{1: "stdout", 2: "stderr", 4: "console"}[fd]]
    assert kept["dropped"] == 7 << 20
    assert base64.b64decode(kept["head"]) == b"".join(bytes([n]) * 65536 for n in range(8))
    assert base64.b64decode(kept["tail"]) == b"".join(bytes([n]) * 65536 for n in range(120, 128))


def test_several_launches_at_once(agent: LocalAgent) -> None:
    """Launches do not mix."""
    programs = [f"import os; os.write(4, b'{n}'); raise SystemExit({n})" for n in range(4)]
    asked = [agent.ask("observe", **request(program)) for program in programs]
    for n, number in enumerate(asked):
        result = left(agent.receive(lambda frame, number=number: frame.get("id") == number)["ok"])
        assert (said(result["console"]), result["exit"]) == (b"%d" % n, {"status": n})
