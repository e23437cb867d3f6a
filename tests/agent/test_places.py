# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests side by side on a host: several real agents meet in one directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

LocalAgent = Any
NAP = [sys.executable, "-c", "import time; time.sleep(600)"]
ANY_MEMORY = 1 << 30


def launch(agent: LocalAgent, most: int | None, **more: Any) -> int:
    """Ask for something that lasts; the number of the request."""
    request = {"argv": NAP, "mode": "stop", "timeout_s": 60, "side_by_side": most, **more}
    number: int = agent.ask("launch", **request)
    return number


def answer(agent: LocalAgent, number: int) -> dict[str, Any]:
    """The reply to a request."""
    reply: dict[str, Any] = agent.receive(lambda frame: frame.get("id") == number)
    return reply


def end(agent: LocalAgent) -> None:
    """Kill the first launch and collect it."""
    agent.call("kill", launch=1, signal=9)
    agent.call("collect", launch=1, timeout_s=15)


def test_one_more_than_there_may_be_waits(start_agent: Callable[[], LocalAgent]) -> None:
    """It starts when another one has ended, whichever agent's that was."""
    first, second, third = start_agent(), start_agent(), start_agent()
    for agent in (first, second):
        assert "ok" in answer(agent, launch(agent, 2))
    waiting = launch(third, 2)
    assert "ok" in third.call("exec", argv=["true"], timeout_s=5)
    assert not any(frame.get("id") == waiting for frame in third._arrived)
    end(first)
    assert "ok" in answer(third, waiting)


def test_an_agent_that_is_killed_leaves_its_place(start_agent: Callable[[], LocalAgent]) -> None:
    """The kernel frees it."""
    killed, other = start_agent(), start_agent()
    assert "ok" in answer(killed, launch(killed, 1))
    waiting = launch(other, 1)
    killed.process.kill()
    assert "ok" in answer(other, waiting)


def test_who_waits_too_long_is_told(start_agent: Callable[[], LocalAgent]) -> None:
    """The refusal names the limit; the next launch is possible again."""
    busy, other = start_agent(), start_agent()
    assert "ok" in answer(busy, launch(busy, 1))
    error = answer(other, launch(other, 1, timeout_s=0.2))["error"]
    assert (error["kind"], error["evidence"]["side_by_side"]) == ("Busy", 1)
    end(busy)
    assert "ok" in answer(other, launch(other, 1))


def test_more_memory_than_there_is(agent: LocalAgent) -> None:
    """A guest that the host has no memory for is not started."""
    error = answer(agent, launch(agent, None, memory_mib=ANY_MEMORY, timeout_s=0.2))["error"]
    assert error["kind"] == "Busy"
    assert f"wanted {ANY_MEMORY}" in error["message"]
    assert agent.call("collect", launch=1, timeout_s=5)["error"]["kind"] == "UnknownLaunch"


def test_a_launch_that_cannot_be_made_leaves_its_place(agent: LocalAgent) -> None:
    """An argument that makes no sense is the answer, and holds nothing."""
    assert "error" in answer(agent, launch(agent, 1, mode="sideways"))
    assert "ok" in answer(agent, launch(agent, 1))
