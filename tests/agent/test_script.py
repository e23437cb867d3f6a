# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts of conversations as they come over the wire: what makes no sense is refused, before a launch."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_seves.agent.script import Type, load
from pytest_seves.guest.script import QUESTIONS, script
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.guest.steps import console, dump, event, gdb, hmp, qmp, repeat, typed
from tests.agent.standing import QUIET

CONSOLE = {"do": "console", "pattern": "x", "timeout_s": 1, "fresh": True}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"ends": "SIGSEGV"}, "ends: wanted one of quit, SIGTERM, SIGKILL, never, got 'SIGSEGV'"),
        ({"paused": 1}, "wanted bool, got 1"),
        ({"steps": [{"do": "dance"}]}, "no step 'dance'; there are qmp, repeat"),
        ({"steps": [{}]}, "'do'"),
        ({"steps": [5]}, "makes no sense"),
        ({"steps": [{"do": "qmp", "command": "stop", "arguments": [], "until": []}]}, "wanted dict"),
        ({"steps": [{"do": "gdb", "packets": ["é"]}]}, "wanted ASCII"),
        ({"steps": [{"do": "gdb", "packets": ["g"]}] * 2}, "a debugger attaches once"),
        (
            {"steps": [{"do": "console", "pattern": "(", "timeout_s": 1, "fresh": True}]},
            "no regular expression",
        ),
        ({"steps": [{"do": "await", "events": [], "timeout_s": -1}]}, "wanted a number of seconds"),
        ({"steps": [{"do": "await", "events": [], "timeout_s": float("nan")}]}, "wanted a number of seconds"),
        ({"steps": [{"do": "type", "text": "é"}]}, "wanted ASCII, 1 to 256 characters"),
        ({"steps": [{"do": "type", "text": ""}]}, "wanted ASCII, 1 to 256 characters"),
        ({"steps": [{"do": "type", "text": "x" * 257}]}, "wanted ASCII, 1 to 256 characters"),
        ({"steps": [{"do": "dump", "begin": "0", "length": 1}]}, "wanted int, got '0'"),
    ],
)
def test_misuse(wrong: dict[str, Any], complaint: str) -> None:
    """It is named."""
    with pytest.raises(ValueError, match=complaint):
        load({**QUIET, **wrong})


@pytest.mark.parametrize("written", [None, [], {}, "quit"])
def test_no_script(written: Any) -> None:
    """Anything else is refused as well."""
    with pytest.raises(ValueError, match="script"):
        load(written)


def test_every_step_arrives() -> None:
    """What a guest's specification asks for is what the agent reads, through JSON."""
    steps = (
        qmp("stop", until=("STOP",)),
        repeat(2, hmp("info mtree")),
        gdb("g"),
        console("ready", timeout_s=3.0, fresh=True),
        typed("reset"),
        event("RESET"),
        dump(0x1000),
    )
    spec = GuestSpec(paused=True, paused_steps=(qmp("query-name"),), steps=steps, ends="SIGTERM")
    told = load(json.loads(json.dumps(script(spec))))
    assert [type(step).__name__ for step in told.steps] == [
        *("Command", "Repeat", "Command", "Gdb", "Console", "Type", "Await", "Dump")
    ]
    assert [step.text for step in told.steps if isinstance(step, Type)] == [b"reset\r"]
    assert [question.name for question in told.questions] == list(QUESTIONS)
    assert sorted(told.awaited) == ["RESET", "STOP"]
    assert (told.signal, told.paused) == (15, True)
    assert [getattr(step, "name", "") for step in told.paused_steps] == ["query-name"]
