# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns on a host: launches side by side, or one agent alone. Several real agents meet in one directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

LocalAgent = Any
NAP = [sys.executable, "-c", "import time; time.sleep(600)"]


def launch(agent: LocalAgent, timeout_s: float = 60) -> dict[str, Any]:
    """Start something that lasts, as the VMM; the reply."""
    reply: dict[str, Any] = agent.call("launch", argv=NAP, mode="stop", timeout_s=timeout_s)
    return reply


def end(agent: LocalAgent, number: int) -> None:
    """Kill a launch and collect it."""
    agent.call("kill", launch=number, signal=9)
    agent.call("collect", launch=number, timeout_s=15)


def test_misuse(agent: LocalAgent) -> None:
    """Who is not alone can neither end that nor hold ASIDs, and nobody is alone twice or beside a launch."""
    assert agent.call("alone.end")["error"]["kind"] == "ValueError"
    assert agent.call("alone.hold", free=1)["error"]["kind"] == "ValueError"
    assert agent.call("alone.begin", timeout_s=5)["ok"] == {}
    assert agent.call("alone.begin", timeout_s=5)["error"]["kind"] == "ValueError"
    agent.call("alone.end")
    launch(agent)
    assert agent.call("alone.begin", timeout_s=5)["error"]["kind"] == "ValueError"


def test_a_launch_waits_while_another_agent_is_alone(start_agent: Callable[[], LocalAgent]) -> None:
    """The launch comes when the other one is done; the one who is alone launches meanwhile."""
    alone, other = start_agent(), start_agent()
    alone.call("alone.begin", timeout_s=5)
    waiting = other.ask("launch", argv=NAP, mode="stop", timeout_s=60)
    end(alone, launch(alone)["ok"]["launch"])
    alone.call("alone.end")
    assert other.receive(lambda frame: frame.get("id") == waiting)["ok"]["launch"] == 1


def test_alone_waits_for_a_launch(start_agent: Callable[[], LocalAgent]) -> None:
    """Who wants to be alone waits for the launches of others, and keeps new ones from starting before."""
    busy, wants, late = start_agent(), start_agent(), start_agent()
    number = launch(busy)["ok"]["launch"]
    asked = wants.ask("alone.begin", timeout_s=30)
    wants.call("exec", argv=["true"], timeout_s=5)  # by now it holds the gate
    later = late.ask("launch", argv=NAP, mode="stop", timeout_s=60)
    end(busy, number)
    assert wants.receive(lambda frame: frame.get("id") == asked)["ok"] == {}
    wants.call("alone.end")
    assert "ok" in late.receive(lambda frame: frame.get("id") == later)


@pytest.mark.parametrize("op", ["alone.begin", "launch"])
def test_a_host_that_stays_taken(start_agent: Callable[[], LocalAgent], op: str) -> None:
    """After the time limit the request fails and names the lock; later ones are not blocked by it."""
    taken, other = start_agent(), start_agent()
    taken.call("alone.begin", timeout_s=5)
    args = {"argv": NAP, "mode": "stop"} if op == "launch" else {}
    error = other.call(op, timeout_s=0.3, **args)["error"]
    assert error["kind"] == "Busy"
    assert "pytest-seves.use.lock was not free for 0.3 s" in error["message"]
    taken.call("alone.end")
    assert "ok" in launch(other)


def test_the_locks_end_with_their_agent(start_agent: Callable[[], LocalAgent]) -> None:
    """An agent that is killed while it is alone blocks nobody."""
    killed, other = start_agent(), start_agent()
    killed.call("alone.begin", timeout_s=5)
    killed.process.kill()
    assert "ok" in launch(other)


def test_a_launch_that_cannot_start_gives_its_turn_back(start_agent: Callable[[], LocalAgent]) -> None:
    """A bad request leaves no turn behind."""
    wrong, other = start_agent(), start_agent()
    assert wrong.call("launch", argv=[], timeout_s=5)["error"]["kind"] == "ValueError"
    assert other.call("alone.begin", timeout_s=5)["ok"] == {}
