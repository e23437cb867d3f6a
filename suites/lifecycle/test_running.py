# SPDX-License-Identifier: GPL-2.0-or-later
"""LIFECYCLE: how a SEV-ES guest that runs ends itself, and a vCPU that comes too late."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.guest.probe import END
from pytest_seves.guest.steps import Step, console, event, qmp
from suites.lifecycle.test_lifecycle import ended_with_its_message, measured_again

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.guest.probe import Probe

STOPPED = event("STOP", "SHUTDOWN", "RESET", "GUEST_PANICKED")
REASON = {"reason_set": 1, "reason_code": 0x2A}
#: As QEMU 11.0 says it on standard error.
TOLD = re.compile(r"SEV termination \(reason set: 1 code: 42\)")
#: One vCPU, and room for another one in a socket of its own.
ROOM = ["-smp", "1,sockets=2,cores=1,threads=1,maxcpus=2"]
LATE = qmp("device_add", driver="EPYC-v3-x86_64-cpu", id="late", socket_id=1, core_id=0, thread_id=0)


def stopped(launch: Launch) -> bool:
    """Whether the guest no longer runs: its VMM ended by itself, or says so."""
    ended = not launch.qmp.all("quit") and not launch.exit.killed_at_deadline
    return ended or launch.qmp.replies("query-status")[-1]["running"] is False


@pytest.mark.requirement("LIFECYCLE-1")
@pytest.mark.parametrize("by", ["cf9", "keyboard"])
def test_a_reset_of_the_guests_own(probe: Probe, by: str) -> None:
    """A guest that resets itself ends with a message that says why, or is launched and measured again."""
    launch = probe("reset", vcpus=2, reset_by=by, steps=[console(END), event("SHUTDOWN", "RESET")])
    assert launch.reports[0].result == "ok"
    assert ended_with_its_message(launch) or measured_again(launch), launch.account()


@pytest.mark.requirement("LIFECYCLE-3")
def test_a_termination_request_stops_the_guest(probe: Probe) -> None:
    """A guest that asks for its termination does not run on."""
    launch = probe("terminate", vcpus=2, **REASON, steps=[console(END), STOPPED])
    assert launch.report.result == "ok"
    assert not launch.report.returned
    assert stopped(launch), launch.account()


@pytest.mark.requirement("LIFECYCLE-3")
def test_the_reason_of_a_termination_is_told(probe: Probe) -> None:
    """The reason set and code of the request reach the user."""
    launch = probe("terminate", vcpus=2, **REASON, steps=[console(END), STOPPED])
    assert launch.report.result == "ok"
    panics = [e["data"].get("info", {}) for _, e in launch.qmp.events if e["event"] == "GUEST_PANICKED"]
    reasons = [(info.get("set"), info.get("code")) for info in panics]
    assert TOLD.search(launch.stderr.text) or reasons == [(1, 0x2A)], launch.account()


@pytest.mark.requirement("LIFECYCLE-4")
@pytest.mark.parametrize("policy", [0x1, 0x5], ids=["NODBG", "ES+NODBG"])
def test_a_triple_fault_ends_the_guest(probe: Probe, policy: int) -> None:
    """A triple fault stops, ends or resets the guest, and nothing hangs."""
    launch = probe("triple-fault", vcpus=2, policy=policy, steps=[console(END), STOPPED])
    assert launch.reports[0].result == "ok"  # a guest that was reset may have begun another
    reset = any(e["event"] == "RESET" for _, e in launch.qmp.events)
    assert reset or stopped(launch), launch.account()


@pytest.mark.requirement("LIFECYCLE-7")
def test_a_late_vcpu_never_runs(probe: Probe) -> None:
    """A vCPU added after the launch was not measured, and executes nothing though the guest calls it."""
    steps: list[Step] = [console(" begin "), LATE, event("STOP", "SHUTDOWN", timeout_s=30.0)]
    # It calls when it begins, before there is anybody, and in each round of the scenario again.
    launch = probe("park", vcpus=1, cpus=2, rounds=1, extra=ROOM, steps=steps)
    report = launch.reports[0]
    (added,) = launch.qmp.all("device_add")
    assert launch.timeline.measured_vcpus == [0]
    assert [cpu.index for cpu in report.cpus if cpu.arrived] in ([], [0])
    if launch.phase and not added.error:
        raise Undecided(f"{launch.host}: the guest did not call the vCPU in time: {launch.account()}")
