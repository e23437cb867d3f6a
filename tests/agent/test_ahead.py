# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked for ahead of its time waits until nothing else of that agent runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pytest_seves.agent.frames import encode
from tests.agent.standing import Standing

LocalAgent = Any
Stand = Callable[..., Standing]


def ahead(agent: LocalAgent, number: int, vmm: Standing, **args: Any) -> None:
    """Ask for a launch ahead."""
    request = {"id": number, "op": "observe", "args": {**vmm.request, **args}, "ahead": True}
    agent.send(encode(request))


@pytest.mark.parametrize("wrong", [{}, {"nonsense": 1}, {"argv": ["/no/such/program"]}])
def test_one_after_the_other(agent: LocalAgent, standing: Stand, wrong: dict[str, Any]) -> None:
    """They come in order, whatever becomes of one; what is needed now does not wait for them."""
    first, second, third, now = (standing() for _ in range(4))
    ahead(agent, 1001, first)
    ahead(agent, 1002, second, **wrong)
    ahead(agent, 1003, third)
    pid, _ = first.pids()
    number = agent.ask("observe", **now.request)
    needed, _ = now.pids()
    os.kill(pid, signal.SIGKILL)
    assert "ok" in agent.receive(lambda frame: frame.get("id") == 1001)
    assert "ok" in agent.call("exec", argv=["true"], timeout_s=5)
    assert not second.runs(within_s=0)
    os.kill(needed, signal.SIGKILL)
    assert "ok" in agent.receive(lambda frame: frame.get("id") == number)
    if not wrong:
        pid, _ = second.pids()
        assert not third.runs(within_s=0)
        os.kill(pid, signal.SIGKILL)
    agent.receive(lambda frame: frame.get("id") == 1002)
    assert third.runs()


def test_the_end_does_not_wait_for_them(agent: LocalAgent, standing: Stand) -> None:
    """With its channel the agent ends, and what it launched ahead."""
    first, second = standing(), standing()
    ahead(agent, 1001, first)
    ahead(agent, 1002, second)
    pid, _ = first.pids()
    assert agent.end() == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not second.runs(within_s=0)
