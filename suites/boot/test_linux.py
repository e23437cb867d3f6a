# SPDX-License-Identifier: GPL-2.0-or-later
"""BOOT: what a Linux kernel makes of the guest, and that it can end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided, Unsupported
from pytest_seves.evidence.timeline import Stage
from suites.lifecycle.test_lifecycle import ended_with_its_message, measured_again

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.evidence.linux_report import LinuxReport
    from pytest_seves.guest.kernel import Linux

pytestmark = pytest.mark.slow

CYCLES = 10
SIZES = pytest.mark.parametrize("vcpus", [1, 4], ids=["1vcpu", "4vcpu"])
#: With a control that is not encrypted.
POLICIES = pytest.mark.parametrize("policy", [0x5, None], ids=["ES+NODBG", "plain"])
ACTIVE = pytest.mark.parametrize(
    ("policy", "active"),
    [(0x5, {"SEV", "SEV-ES"}), (0x1, {"SEV"}), (None, set())],
    ids=["ES+NODBG", "NODBG", "plain"],
)


def booted(launch: Launch) -> LinuxReport:
    """The report of a kernel that came to its init once; BOOT-1 judges that it does."""
    if len(launch.reached(Stage.RUNNING).boots) == 1:
        return launch.boots[0]
    raise Undecided(f"{launch.host}: init reported {len(launch.boots)} times: {launch.account()}")


@pytest.mark.requirement("BOOT-1")
@POLICIES
@SIZES
def test_every_cpu_is_online(linux: Linux, vcpus: int, policy: int | None) -> None:
    """The kernel comes to its init with all CPUs online, and each has an APIC id of its own."""
    launch = linux(vcpus=vcpus, policy=policy, cycles=CYCLES).reached(Stage.RUNNING)
    assert [(boot.present, boot.online) for boot in launch.boots] == [(vcpus, vcpus)], launch.account()
    assert [cpu.apic_id for cpu in launch.boots[0].cpus if cpu.ran] == list(range(vcpus))


@pytest.mark.requirement("BOOT-2")
@ACTIVE
def test_the_kernel_names_the_encryption(linux: Linux, policy: int | None, active: set[str]) -> None:
    """The kernel's log names what the policy asks for, and nothing else."""
    assert booted(linux(vcpus=4, policy=policy, cycles=CYCLES)).logged == active


@pytest.mark.requirement("BOOT-2")
@ACTIVE
def test_sev_status_says_the_same(linux: Linux, policy: int | None, active: set[str]) -> None:
    """SEV_STATUS of each CPU, read apart from the log, says the same."""
    told = booted(linux(vcpus=4, policy=policy, cycles=CYCLES)).by_status
    if None in told:
        raise Unsupported("the kernel of the guest has no msr driver: name one as [guest] msr_module")
    assert set(told) == {frozenset(active)}


@pytest.mark.requirement("BOOT-3")
@POLICIES
def test_cpus_go_and_come_back(linux: Linux, policy: int | None) -> None:
    """Each AP is taken offline and comes online again, each time."""
    boot = booted(linux(vcpus=4, policy=policy, cycles=CYCLES))
    assert [(ap.cpu, ap.offline, ap.online, ap.ran) for ap in boot.cycled] == [
        (cpu, CYCLES, CYCLES, CYCLES) for cpu in (1, 2, 3)
    ]
    assert boot.last_online == 4


@pytest.mark.requirement("BOOT-4")
@POLICIES
@SIZES
def test_a_power_off_ends_the_vm(linux: Linux, vcpus: int, policy: int | None) -> None:
    """A guest that powers off ends its VMM, by itself and in order."""
    launch = linux(vcpus=vcpus, policy=policy, cycles=CYCLES)
    assert booted(launch).complete
    assert not launch.qmp.all("quit"), launch.account()
    assert (launch.exit.status, launch.exit.signal) == (0, None), launch.account()


@pytest.mark.requirement("BOOT-5")
@SIZES
def test_a_reboot_ends_or_rebuilds_the_vm(linux: Linux, vcpus: int) -> None:
    """A SEV-ES guest that reboots ends with a message that says why, or is launched and measured again."""
    launch = linux(vcpus=vcpus, then="reboot")
    if not launch.reached(Stage.RUNNING).boots:
        raise Undecided(f"{launch.host}: init never reported: {launch.account()}")
    assert ended_with_its_message(launch) or measured_again(launch), launch.account()


@pytest.mark.requirement("BOOT-5")
def test_a_plain_guest_reboots(linux: Linux) -> None:
    """Without encryption it boots again (control)."""
    launch = linux(vcpus=4, policy=None, then="reboot").reached(Stage.RUNNING)
    if not launch.boots:
        raise Undecided(f"{launch.host}: init never reported: {launch.account()}")
    assert len(launch.boots) > 1, launch.account()
