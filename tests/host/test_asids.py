# SPDX-License-Identifier: GPL-2.0-or-later
"""Free SEV-ES ASIDs as processes of a run see them: guests of ours make way for each other, others do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_seves.errors import HostError
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.host.client import open_client
from pytest_seves.host.lease import Tenant
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost

OURS, THEIRS = Tenant("1a2b3c4d", "alice", "desk", 1), Tenant("5e6f7a8b", "bob", "desk", 2)
PROJECT = Path(__file__).resolve().parents[2]

Connect = Callable[[Tenant], Target]


@pytest.fixture
def model() -> Iterator[ModelHost]:
    """A host with one ASID for SEV-ES."""
    with ModelHost.start("linux-6.1:es_asids=1") as host:
        yield host


@pytest.fixture
def connect(model: ModelHost) -> Iterator[Connect]:
    """The host as processes of runs see it, each with an agent of its own."""
    with ExitStack() as stack:
        entry = replace(entry_of(model), shared=True)
        yield lambda run: stack.enter_context(Target(entry, run))


@contextmanager
def stranger(model: ModelHost, tmp_path: Path) -> Iterator[None]:
    """Somebody who knows of no lease holds the host's only ASID meanwhile."""
    taken, go = tmp_path / "taken", tmp_path / "go"
    for fifo in (taken, go):
        os.mkfifo(fifo)
    program = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from pytest_seves.agent.asid_holder import _fill\n"
        f"held = _fill(99); open({str(taken)!r}, 'w').write(str(len(held))); open({str(go)!r}).read()"
    )
    request = {"argv": [sys.executable, "-c", program], "timeout_s": 60}
    with ExitStack() as stack:
        client = stack.enter_context(open_client(entry_of(model)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        ended = pool.submit(client.call, "exec", request, timeout_s=90)
        assert taken.read_text() == "1"
        yield
        go.write_text("")
        assert ended.result()["status"] == 0


@pytest.mark.parametrize("run", [OURS, THEIRS], ids=["worker", "run"])
def test_a_guest_of_ours_holds_the_only_one(connect: Connect, run: Tenant) -> None:
    """Another worker, or a run that shares the host, finds it ready, and its launch waits for its turn."""
    first, second = connect(OURS), connect(run)
    assert Launcher(first).keep(GuestSpec(), minutes=2).phase == ""
    assert second.client.call("health")["misc"]["current"]["sev_es"] == 1
    assert second.facts.free_es_asids == 1
    second.require_ready()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Launcher(second).launch, GuestSpec())
        first.__exit__(None, None, None)
        assert waiting.result().timeline.runs


def test_a_worker_s_successor(connect: Connect) -> None:
    """Who comes when the worker that began the run has gone knows what it has counted."""
    first, second = connect(OURS), connect(OURS)
    assert (first.facts.free_es_asids, second.facts.free_es_asids) == (1, 1)
    first.__exit__(None, None, None)
    assert Launcher(second).keep(GuestSpec(), minutes=2).phase == ""
    assert connect(OURS).facts.free_es_asids == 1


def test_a_stranger_holds_the_only_one(model: ModelHost, connect: Connect, tmp_path: Path) -> None:
    """No process of the run finds the host ready, until it is given back."""
    with stranger(model, tmp_path):
        for _ in range(2):
            with pytest.raises(HostError, match=r"free ASIDs for SEV-ES: 0 of 1\. all are in use"):
                connect(OURS).require_ready()
    connect(OURS).require_ready()


def test_a_former_run_s_guest_is_no_stranger(connect: Connect) -> None:
    """What a run leaves behind is gone before the next one counts."""
    first = connect(OURS)
    assert Launcher(first).keep(GuestSpec(), minutes=2).phase == ""
    os.kill(first.client.hello["pid"], 9)
    assert connect(THEIRS).facts.free_es_asids == 1
