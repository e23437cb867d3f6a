# SPDX-License-Identifier: GPL-2.0-or-later
"""LIFECYCLE: how a SEV-ES guest ends, what it gives back, and what must not be done to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.spec import ENDS
from pytest_seves.guest.steps import hmp, qmp
from pytest_seves.spec.sev import SevCmd

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.fixtures import Launcher

RESET = qmp("system_reset", until=("RESET", "SHUTDOWN"))
#: Nobody listens there: a VMM that tries to migrate fails too, for another reason.
MIGRATE = qmp("migrate", uri="unix:/nonexistent/seves")
LAUNCH = (SevCmd.KVM_SEV_LAUNCH_START, SevCmd.KVM_SEV_LAUNCH_MEASURE)
SAVEVM = hmp("savevm seves")
BLOCKED = re.compile("SEV|confidential", re.IGNORECASE)
#: 64 MiB that the guest may give back page by page.
VIRTIO_MEM = [
    *("-m", "256M,slots=1,maxmem=1G"),
    *("-object", "memory-backend-ram,id=pool,size=64M"),
    *("-device", "virtio-mem-pci,memdev=pool"),
]


def ended_with_its_message(launch: Launch) -> bool:
    """Whether a VMM that cannot reset such a guest ended it, in order, and said why."""
    ended = launch.exit.status == 0 and not launch.qmp.all("quit")
    return ended and "cpus are not resettable" in launch.stderr.text


def measured_again(launch: Launch) -> bool:
    """Whether a VMM that can has built and measured the guest once more."""
    done = [event.name for event in launch.timeline.recorded if event.sev and event.succeeded]
    starts, measures = (done.count(command.name) for command in LAUNCH)
    return starts > 1 and measures > 1 and launch.timeline.measured_vcpus == launch.timeline.created_vcpus


@pytest.mark.requirement("LIFECYCLE-1")
@pytest.mark.parametrize("vcpus", [1, 3], ids=["1vcpu", "3vcpu"])
def test_a_reset_ends_or_rebuilds_the_guest(launch_guest: Launcher, vcpus: int) -> None:
    """A reset ends the VM with a message that says why, or launches and measures the guest again."""
    launch = launch_guest(vcpus=vcpus, steps=[RESET]).reached(Stage.RUNNING)
    _ = launch.timeline.vmsa_update  # a guest that was not measured does not run either; VMSA-1 judges that
    assert ended_with_its_message(launch) or measured_again(launch), launch.account()


@pytest.mark.requirement("LIFECYCLE-2")
def test_migration_is_blocked(launch_guest: Launcher) -> None:
    """Migrating a running SEV-ES guest is refused with the reason."""
    launch = launch_guest(steps=[MIGRATE]).reached(Stage.RUNNING)
    (migrate,) = launch.qmp.all("migrate")
    assert migrate.error is not None
    assert BLOCKED.search(migrate.error["desc"])


@pytest.mark.requirement("LIFECYCLE-2")
def test_a_snapshot_is_blocked(launch_guest: Launcher) -> None:
    """Saving a snapshot of a running SEV-ES guest is refused with the reason."""
    launch = launch_guest(steps=[SAVEVM]).reached(Stage.RUNNING)
    (answer,) = launch.qmp.replies("human-monitor-command")
    assert BLOCKED.search(answer)


@pytest.mark.requirement("LIFECYCLE-2")
def test_a_plain_guest_is_not_blocked(launch_guest: Launcher) -> None:
    """Without encryption nothing blocks migration (control): it is tried."""
    launch = launch_guest(policy=None, steps=[MIGRATE]).reached(Stage.RUNNING)
    assert [e.error for e in launch.qmp.all("migrate") if e.error and BLOCKED.search(e.error["desc"])] == []


@pytest.mark.requirement("LIFECYCLE-5")
@pytest.mark.parametrize("ends", ENDS)
def test_the_asid_is_given_back(launch_guest: Launcher, ends: str) -> None:
    """However the VMM ends, its ASID serves the next guest: two launches in a row where one ASID is left."""
    with launch_guest.alone() as alone:
        alone.leave_free(es_asids=1)
        first, second = alone(ends=ends), alone()
    before, after = first.reached(Stage.RUNNING).held
    assert after == before
    assert second.timeline.stage == Stage.RUNNING, second.account()


@pytest.mark.requirement("LIFECYCLE-6")
def test_a_full_pool_refuses_the_launch(launch_guest: Launcher) -> None:
    """With every SEV-ES ASID taken a launch ends with the reason, and works again once one is free."""
    launch_guest().reached(Stage.RUNNING)
    with launch_guest.alone() as alone:
        alone.leave_free(es_asids=0)
        refused = alone()
        alone.leave_free(es_asids=1)
        again = alone()
    assert refused.timeline.runs == ()
    assert "failed to initialize ret=-16" in refused.stderr.text  # EBUSY
    assert (refused.exit.signal, refused.exit.status) == (None, 1)
    assert again.timeline.stage == Stage.RUNNING, again.account()


@pytest.mark.requirement("LIFECYCLE-8")
def test_memory_discard_is_inhibited(launch_guest: Launcher) -> None:
    """A device that gives guest memory back to the host is refused for a SEV-ES guest, in order."""
    launch_guest().reached(Stage.RUNNING)
    launch = launch_guest(extra=VIRTIO_MEM).initialised_for()
    assert launch.timeline.runs == ()
    assert "Discarding RAM is disabled" in launch.stderr.text
    assert (launch.exit.signal, launch.exit.status) == (None, 1)


@pytest.mark.requirement("LIFECYCLE-8")
def test_a_plain_guest_may_discard_memory(launch_guest: Launcher) -> None:
    """Without encryption the same device is taken (control)."""
    launch_guest(policy=None).reached(Stage.RUNNING)
    launch = launch_guest(policy=None, extra=VIRTIO_MEM)
    assert launch.timeline.stage == Stage.RUNNING, launch.account()
