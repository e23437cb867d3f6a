# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns on a host: launches side by side, or one agent alone. Several real agents meet in one directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.agent.standing import QUIET, Standing

LocalAgent = Any
Stand = Callable[..., Standing]


def launch(agent: LocalAgent, vmm: Standing) -> tuple[int, int]:
    """Launch something that lasts, and wait until it runs; the number of the request, and its pid."""
    number = agent.ask("observe", **vmm.request)
    return number, vmm.pids()[0]


def end(agent: LocalAgent, number: int, vmm: int) -> None:
    """Kill a launch, and wait for what is known of it."""
    os.kill(vmm, signal.SIGKILL)
    assert "ok" in agent.receive(lambda frame: frame.get("id") == number)


def test_misuse(agent: LocalAgent, standing: Stand) -> None:
    """Who is not alone can neither end that nor hold ASIDs, and nobody is alone twice or beside a launch."""
    assert agent.call("alone.end")["error"]["kind"] == "ValueError"
    assert agent.call("alone.hold", free=1)["error"]["kind"] == "ValueError"
    assert "alone" in agent.call("observe", **standing(usage=True).request)["error"]["message"]
    assert agent.call("alone.begin", timeout_s=5)["ok"] == {}
    assert agent.call("alone.begin", timeout_s=5)["error"]["kind"] == "ValueError"
    agent.call("alone.end")
    launch(agent, standing())
    assert agent.call("alone.begin", timeout_s=5)["error"]["kind"] == "ValueError"


def test_a_launch_waits_while_another_agent_is_alone(
    start_agent: Callable[[], LocalAgent], standing: Stand
) -> None:
    """The launch comes when the other one is done; the one who is alone launches meanwhile."""
    alone, other = start_agent(), start_agent()
    alone.call("alone.begin", timeout_s=5)
    waiting = standing()
    other.ask("observe", **waiting.request)
    end(alone, *launch(alone, standing()))
    assert "ok" in other.call("exec", argv=["true"], timeout_s=5)
    assert not waiting.runs(within_s=0)
    alone.call("alone.end")
    assert waiting.runs()


def test_alone_waits_for_a_launch(start_agent: Callable[[], LocalAgent], standing: Stand) -> None:
    """Who wants to be alone waits for the launches of others, and keeps new ones from starting before."""
    busy, wants, late = start_agent(), start_agent(), start_agent()
    begun = launch(busy, standing())
    asked = wants.ask("alone.begin", timeout_s=30)
    wants.call("exec", argv=["true"], timeout_s=5)  # by now it holds the gate
    later = standing()
    late.ask("observe", **later.request)
    end(busy, *begun)
    assert wants.receive(lambda frame: frame.get("id") == asked)["ok"] == {}
    assert not later.runs(within_s=0)
    wants.call("alone.end")
    assert later.runs()


@pytest.mark.parametrize("op", ["alone.begin", "observe"])
def test_a_host_that_stays_taken(start_agent: Callable[[], LocalAgent], standing: Stand, op: str) -> None:
    """After the time limit the request fails and names the lock; later ones are not blocked by it."""
    taken, other = start_agent(), start_agent()
    taken.call("alone.begin", timeout_s=5)
    args = {"argv": ["true"], "script": QUIET} if op == "observe" else {}
    error = other.call(op, timeout_s=0.3, **args)["error"]
    assert error["kind"] == "Busy"
    assert "pytest-seves.use.lock was not free for 0.3 s" in error["message"]
    taken.call("alone.end")
    launch(other, standing())


def test_the_locks_end_with_their_agent(start_agent: Callable[[], LocalAgent], standing: Stand) -> None:
    """An agent that is killed while it is alone blocks nobody."""
    killed, other = start_agent(), start_agent()
    killed.call("alone.begin", timeout_s=5)
    killed.process.kill()
    launch(other, standing())


def test_launches_that_waited_together_leave_no_lock(
    start_agent: Callable[[], LocalAgent], standing: Stand
) -> None:
    """Two of one agent wait for another that is alone; once both are over it can be alone again."""
    alone, other = start_agent(), start_agent()
    alone.call("alone.begin", timeout_s=5)
    waiting = standing(), standing()
    asked = [other.ask("observe", **vmm.request) for vmm in waiting]
    other.call("exec", argv=["true"], timeout_s=5)  # by now both wait
    alone.call("alone.end")
    for vmm in waiting:
        assert vmm.runs()
    for number, vmm in zip(asked, waiting, strict=True):
        end(other, number, vmm.pids()[0])
    assert alone.call("alone.begin", timeout_s=1)["ok"] == {}


def test_a_launch_that_cannot_start_gives_its_turn_back(start_agent: Callable[[], LocalAgent]) -> None:
    """A bad request leaves no turn behind."""
    wrong, other = start_agent(), start_agent()
    assert wrong.call("observe", argv=[], script=QUIET, timeout_s=5)["error"]["kind"] == "ValueError"
    assert other.call("alone.begin", timeout_s=5)["ok"] == {}
