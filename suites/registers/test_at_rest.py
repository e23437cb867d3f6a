# SPDX-License-Identifier: GPL-2.0-or-later
"""REGISTERS: what a VMM's monitor and debugger reach of a SEV-ES guest, whatever the guest does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.registers import registers_before
from pytest_seves.evidence.shown import registers_shown, unknown_values
from pytest_seves.evidence.timeline import Stage, after, names
from pytest_seves.guest.steps import gdb, hmp
from pytest_seves.spec import kvm

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.fixtures import Launcher

SHOW = hmp("info registers -a")


def survived(launch: Launch) -> bool:
    """Whether the guest still ran after the last step, and its VMM ended in order when it was told to."""
    running = launch.qmp.replies("query-status")[-1]["status"] == "running"
    return running and launch.exit.status == 0 and not launch.phase


def protected(launch: Launch) -> Launch:
    """This launch, if its vCPUs were measured and run; VMSA-1 judges that they are."""
    _ = launch.timeline.vmsa_update
    asked = [exchange.sent_ns for exchange in launch.qmp.all("human-monitor-command")]
    stopped = [when for when, e in launch.qmp.events if e["event"] == "STOP"]
    if not asked or (stopped and min(stopped) < min(asked)):
        raise Undecided(f"{launch.host}: the guest had stopped before it was asked: {launch.account()}")
    return launch.reached(Stage.RUNNING)


@pytest.mark.requirement("REGISTERS-1")
def test_the_monitor_reads_registers(launch_guest: Launcher) -> None:
    """Reading registers with the monitor answers for each vCPU; no ioctl fails, and the guest runs on."""
    launch = protected(launch_guest(vcpus=3, steps=[SHOW]))
    (shown,) = launch.qmp.replies("human-monitor-command")
    assert sorted(registers_shown(shown)) == [0, 1, 2]
    reads = after(launch.timeline.requests(*kvm.REGISTER_READS), launch.timeline.vmsa_update)
    assert names(event for event in reads if event.failed) == []
    assert survived(launch), launch.account()


@pytest.mark.requirement("REGISTERS-1")
def test_a_debugger_reads_registers(launch_guest: Launcher) -> None:
    """Reading the registers of each vCPU through the gdbstub answers, and the guest goes on."""
    launch = protected(launch_guest(vcpus=2, steps=[gdb("?", "Hg1", "g", "Hg2", "g", "D")]))
    assert [bool(bytes.fromhex(read or "")) for read in launch.gdb.answers("g")] == [True, True]
    assert launch.gdb.nonsense == ""
    assert survived(launch), launch.account()


@pytest.mark.requirement("REGISTERS-3")
@pytest.mark.parametrize("vcpu", [0, 1], ids=["bsp", "ap"])
def test_registers_shown_before_it_runs(launch_guest: Launcher, vcpu: int) -> None:
    """Of a measured guest that has not run, nothing is shown but zeros and what the VMM itself had set."""
    launch = protected(launch_guest(vcpus=2, paused=True, paused_steps=[SHOW]))
    (shown,) = launch.qmp.replies("human-monitor-command")
    given = registers_before(launch.timeline, vcpu, launch.timeline.vmsa_update)
    assert unknown_values(registers_shown(shown)[vcpu], given) == {}


@pytest.mark.requirement("REGISTERS-6")
@pytest.mark.parametrize("packet", ["Z1,fff0,1", "Z2,8000,4", "s"], ids=["breakpoint", "watchpoint", "step"])
def test_hardware_debugging_is_refused(launch_guest: Launcher, packet: str) -> None:
    """The kernel refuses to debug a protected vCPU, the debugger is told where it can be, the guest lives."""
    launch = protected(launch_guest(steps=[gdb("?", packet, "D")]))
    tried = after(launch.timeline.requests(kvm.KVM_SET_GUEST_DEBUG), launch.timeline.vmsa_update)
    assert {event.result for event in tried} == {-22}  # EINVAL
    assert launch.gdb.answers(packet) != ["OK"]
    assert survived(launch), launch.account()


@pytest.mark.requirement("REGISTERS-6")
def test_hardware_debugging_of_a_plain_guest(launch_guest: Launcher) -> None:
    """Without encryption a hardware breakpoint is taken (control)."""
    launch = launch_guest(policy=None, steps=[gdb("?", "Z1,fff0,1", "D")]).reached(Stage.RUNNING)
    assert launch.gdb.answers("Z1,fff0,1") == ["OK"]
