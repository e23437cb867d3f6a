# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests side by side on a host: several real agents meet in one directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.agent.standing import Standing

LocalAgent = Any
Stand = Callable[..., Standing]
ANY_MEMORY = 1 << 30


def test_one_more_than_there_may_be_waits(start_agent: Callable[[], LocalAgent], standing: Stand) -> None:
    """It starts when another one has ended, whichever agent's that was."""
    running = [standing(side_by_side=2) for _ in range(2)]
    for vmm in running:
        start_agent().ask("observe", **vmm.request)
        assert vmm.runs()
    third, waiting = start_agent(), standing(side_by_side=2)
    third.ask("observe", **waiting.request)
    assert "ok" in third.call("exec", argv=["true"], timeout_s=5)
    assert not waiting.runs(within_s=0)
    os.kill(running[0].pids()[0], signal.SIGKILL)
    assert waiting.runs()


def test_an_agent_that_is_killed_leaves_its_place(
    start_agent: Callable[[], LocalAgent], standing: Stand
) -> None:
    """The kernel frees it."""
    killed, other = start_agent(), start_agent()
    first, waiting = standing(side_by_side=1), standing(side_by_side=1)
    killed.ask("observe", **first.request)
    assert first.runs()
    other.ask("observe", **waiting.request)
    killed.process.kill()
    assert waiting.runs()


def test_who_waits_too_long_is_told(start_agent: Callable[[], LocalAgent], standing: Stand) -> None:
    """The refusal names the limit; the next launch is possible again."""
    busy, other = start_agent(), start_agent()
    first, late, next_one = standing(side_by_side=1), standing(side_by_side=1, timeout_s=0.2), standing()
    busy.ask("observe", **first.request)
    vmm, _ = first.pids()
    error = other.call("observe", **late.request)["error"]
    assert (error["kind"], error["evidence"]["side_by_side"]) == ("Busy", 1)
    os.kill(vmm, signal.SIGKILL)
    other.ask("observe", **{**next_one.request, "side_by_side": 1})
    assert next_one.runs()


def test_more_memory_than_there_is(agent: LocalAgent, standing: Stand) -> None:
    """A guest that the host has no memory for is not started."""
    vmm = standing(memory_mib=ANY_MEMORY, timeout_s=0.2)
    error = agent.call("observe", **vmm.request)["error"]
    assert error["kind"] == "Busy"
    assert f"wanted {ANY_MEMORY}" in error["message"]
    assert not vmm.runs(within_s=0)


def test_a_launch_that_cannot_be_made_leaves_its_place(agent: LocalAgent, standing: Stand) -> None:
    """An argument that makes no sense is the answer, and holds nothing."""
    vmm = standing(side_by_side=1)
    assert "error" in agent.call("observe", **{**vmm.request, "mode": "sideways"})
    agent.ask("observe", **vmm.request)
    assert vmm.runs()


def test_a_program_of_calls_waits_for_a_place(start_agent: Callable[[], LocalAgent], standing: Stand) -> None:
    """It may take an ASID too: while a guest has the only place it is not run, and it gives its own back."""
    busy, other = start_agent(), start_agent()
    first, next_one = standing(side_by_side=1), standing(side_by_side=1)
    busy.ask("observe", **first.request)
    vmm, _ = first.pids()
    step = {"do": "memory", "as": "page", "size": 4096}
    program: dict[str, Any] = {"program": [step], "side_by_side": 1}
    assert other.call("calls", **program, timeout_s=0.2)["error"]["kind"] == "Busy"
    os.kill(vmm, signal.SIGKILL)
    assert len(other.call("calls", **program, timeout_s=20)["ok"]["answers"]) == 1
    other.ask("observe", **next_one.request)
    assert next_one.runs()
