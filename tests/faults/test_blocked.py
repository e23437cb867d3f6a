# SPDX-License-Identifier: GPL-2.0-or-later
"""The first confirmed fault blocks a host: the rest of its tests are errors at once, other hosts go on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pytest_seves.blocked import EXIT_BLOCKED
from pytest_seves.model.host import ModelHost
from tests.faults.conftest import Rig
from tests.faults.proxy import Proxy

StartModel = Callable[..., ModelHost]
StartProxy = Callable[[ModelHost], Proxy]

#: Many short tests; in the one of the given number something goes wrong.
MANY = """
import os, pytest, signal
from pathlib import Path
from pytest_seves.guest.calls import open_kvm
from pytest_seves.model import process_tree
from tests.faults.proxy import tell

def kill_all(pid):
    for one in [pid, *process_tree.descendants(pid)]:
        os.kill(one, signal.SIGKILL)

def wrong():
    {wrong}

@pytest.mark.parametrize("number", range({count}))
def test_it(kvm, sev_host, number):
    if number == {at} and sev_host.name == "{host}":
        wrong()
    assert kvm(open_kvm())[0].errno is None
"""


def many(wrong: str, host: str = "lab1", count: int = 100, at: int = 10) -> str:
    """Fill in :data:`MANY`."""
    return MANY.format(wrong=wrong, host=host, count=count, at=at)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_of_two_hosts_dies(rig: Rig, start_model: StartModel, workers: str) -> None:
    """SIGKILL of all of a host: its tests are errors that say so, the other's all pass, nothing failed."""
    for name in ("lab1", "lab2"):
        rig.host(name, start_model())
    rig.write("test_many.py", many("kill_all(int(os.environ['LAB1_PID']))"))
    arguments = ("--sev-host", "lab1", "--sev-host", "lab2", "-n", workers, "--sev-artifacts", "out")
    result = rig.run(*arguments)
    outcomes = result.outcomes()
    assert set(outcomes) == {"passed", "error"}, result.text
    assert result.status == EXIT_BLOCKED
    assert "lab1: blocked by connection lost after" in result.text
    assert "lab2: blocked" not in result.text
    assert not [line for line in result.text.splitlines() if line.startswith("ERROR") and "[lab2" in line]
    assert outcomes["passed"] + outcomes["error"] == 200
    assert outcomes["error"] >= 20  # another worker runs ahead
    verdicts = json.loads(rig.path.joinpath("out/verdicts.json").read_text())
    assert verdicts["lab1"]["blocked"]["of"] == 100
    assert "lab2" not in verdicts  # no test of it names a requirement


@pytest.mark.parametrize(
    ("word", "fault"), [("cut", "connection lost"), ("refuse", "connection lost")], ids=["cut", "refuse"]
)
def test_a_host_that_cannot_be_reached_again(
    rig: Rig, start_model: StartModel, start_proxy: StartProxy, word: str, fault: str
) -> None:
    """A connection that is gone, and cannot be made again, blocks the rest of 100 tests within seconds."""
    model = start_model()
    rig.host("lab1", model, start_proxy(model))
    rig.write("test_many.py", many(f"tell(int(os.environ['LAB1_PROXY']), '{word}')"))
    result = rig.run("--sev-host", "lab1")
    assert result.outcomes() == {"passed": 10, "error": 90}, result.text
    assert result.status == EXIT_BLOCKED
    assert f"lab1: blocked by {fault} after 11 of 100 tests" in result.text
    assert f"blocked: lab1: {fault}: the SSH connection is gone: " in result.text
    assert ", in test_many.py::test_it[10]" in result.text
    assert result.took_s < 25  # 2 s of keep-alive, two attempts of 2 s each, and pytest


@pytest.mark.parametrize("word", ["reset", "corrupt"])
def test_a_connection_that_broke_once(
    rig: Rig, start_model: StartModel, start_proxy: StartProxy, word: str
) -> None:
    """A broken connection is an error of one test; the host, reached anew and well, is not blocked."""
    model = start_model()
    rig.host("lab1", model, start_proxy(model))
    rig.write("test_many.py", many(f"tell(int(os.environ['LAB1_PROXY']), '{word}')", count=20))
    result = rig.run("--sev-host", "lab1")
    assert result.outcomes() == {"passed": 19, "error": 1}, result.text
    assert result.status == pytest.ExitCode.TESTS_FAILED
    assert "blocked" not in result.text
