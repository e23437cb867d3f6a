# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of a launch against VMMs that do not play along, and what a launch alone on a host tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import EvidenceError, HostError, UsageError
from pytest_seves.evidence.launch import Launch, Usage
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.observe import observe
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.guest.steps import Step, gdb, hmp, qmp, repeat

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

#: A VMM that greets, answers every command with {} and does to its gdb socket what follows.
ANSWERING = """
import json, os, re, socket, sys, threading
peer = socket.socket(fileno=3)
peer.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\\r\\n')
stub = socket.socket(fileno=5) if len(sys.argv) > 1 else None
def talk():
    stub.recv(100)
    exec(sys.argv[1])
if stub:
    threading.Thread(target=talk, daemon=True).start()
while data := peer.recv(65536).decode():
    if 'qmp_capabilities' in data:
        peer.sendall(b'{"return": {}}\\r\\n')
    for name in re.findall('"id": ?("[^"]*")', data):
        peer.sendall(b'{"return": {}, "id": %s}\\r\\n' % name.encode())
    if '"quit"' in data:
        break
"""


def watch(target: Target, steps: list[Step], *arguments: str, timeout_s: float = 15.0) -> Launch:
    """Take steps with the small VMM above, on the model; before it runs, since it never uses KVM."""
    spec = GuestSpec.of(paused=True, paused_steps=steps)
    argv = ["python3", "-c", ANSWERING, *arguments]
    return observe(target.client, argv, host="model", spec=spec, timeout_s=timeout_s)


def test_misuse() -> None:
    """Steps before it runs need a guest that was started paused; there is no other way to end."""
    with pytest.raises(UsageError, match="paused_steps: wanted paused=True"):
        GuestSpec.of(paused_steps=[hmp("info registers")])
    with pytest.raises(UsageError, match="ends: wanted one of"):
        GuestSpec.of(ends="SIGSEGV")


@pytest.mark.parametrize(
    ("does", "phase"),
    [
        ("stub.close()", "talking to the gdbstub: g: the stub has closed the connection"),
        ("stub.sendall(b'hello')", "talking to the gdbstub: g: wanted a packet"),
        ("stub.sendall(b'$OK#00')", "talking to the gdbstub: g: packet b'OK': wanted checksum"),
        ("stub.sendall(b'$' + b'x' * (10 << 20))", "talking to the gdbstub: g: a packet of more than 65536"),
    ],
    ids=["closes", "greets", "checksum", "floods"],
)
def test_a_stub_that_does_not_play_along(target: Target, does: str, phase: str) -> None:
    """It is evidence about the VMM, which says what was under way; no error of ours."""
    launch = watch(target, [gdb("g")], does)
    assert launch.phase.startswith(phase)


def test_a_stub_that_is_silent(target: Target) -> None:
    """The deadline of the launch ends the wait."""
    launch = watch(target, [gdb("g")], "stub.recv(1 << 20)", timeout_s=2.0)
    assert launch.phase.startswith("talking to the gdbstub: g: ")
    assert launch.exit.killed_at_deadline


def test_a_vmm_that_dies_in_a_repetition(target: Target) -> None:
    """The step under way is told; the answers that came are there."""
    launch = Launcher(target)(steps=[repeat(3, qmp("query-status"), qmp("quit"))])
    assert launch.phase in ("executing query-status", "executing quit")
    assert launch.timeline.stage == Stage.RUNNING


def test_what_it_costs(target: Target) -> None:
    """A launch is one request, whatever is asked and done, and whether what it holds is counted or not."""
    launcher = Launcher(target)
    launcher()
    before = next(target.client._numbers)
    launcher(paused=True, steps=[gdb("?", "D"), repeat(100, qmp("query-status")), hmp("info registers")])
    assert next(target.client._numbers) == before + 2
    with launcher.alone() as alone:
        before = next(target.client._numbers)
        assert alone().held == (Usage(0, 0, 0), Usage(0, 0, 0))
        assert next(target.client._numbers) == before + 2


def test_an_event_that_never_comes(target: Target) -> None:
    """Waiting for an event ends with the launch's deadline, and says so."""
    launch = watch(target, [qmp("stop", until=("STOP",))], timeout_s=2.0)
    assert launch.phase == "waiting for STOP after stop"


def test_a_launch_alone_counts(target: Target) -> None:
    """It knows what guests held before and after; others do not, and say so."""
    launcher = Launcher(target)
    with launcher.alone() as alone:
        launch = alone()
    assert launch.held == (Usage(0, 0, 0), Usage(0, 0, 0))
    with pytest.raises(EvidenceError, match="it was not alone"):
        _ = launcher().held


def test_a_pool_of_asids(target: Target) -> None:
    """ASIDs can be taken out of the pool, given back, and not more of them left than there are."""
    launcher = Launcher(target)
    with launcher.alone() as alone:
        assert alone.leave_free(es_asids=0) == 99
        assert "ret=-16" in alone().stderr.text
        assert alone.leave_free(es_asids=98) == 1
        assert alone().held[0].sev_es == 1
        with pytest.raises(HostError, match="wanted 100 free SEV-ES ASIDs, got 99"):
            alone.leave_free(es_asids=100)
        assert alone.leave_free(None) == 0
        assert alone().held[0].sev_es == 0
