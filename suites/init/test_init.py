# SPDX-License-Identifier: GPL-2.0-or-later
"""INIT: how a VMM initialises a VM for SEV-ES."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.timeline import Stage, before, names
from pytest_seves.guest.spec import policy_name
from pytest_seves.spec import kvm
from pytest_seves.spec.sev import SevCmd

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.fixtures import Launcher, Target
    from suites.init.conftest import Owner

WITHOUT_ES = pytest.mark.parametrize("policy", [0x0, 0x1, 0x3], ids=policy_name)
FEW_VCPUS = pytest.mark.parametrize("vcpus", [1, 3], ids=["1vcpu", "3vcpu"])
ES_INIT_PATHS = ("KVM_SEV_ES_INIT", "KVM_SEV_INIT2")

TYPES = {
    SevCmd.KVM_SEV_INIT: {kvm.KVM_X86_DEFAULT_VM},
    SevCmd.KVM_SEV_ES_INIT: {kvm.KVM_X86_DEFAULT_VM},
    SevCmd.KVM_SEV_INIT2: {kvm.KVM_X86_SEV_VM, kvm.KVM_X86_SEV_ES_VM},
}

#: What a VMM says where a host cannot do SEV-ES, by the fault that makes it such a host.
DIAGNOSTICS = {
    "platform-without-es": "SEV-ES support unavailable",
    "kvm-without-es": "failed to initialize ret=-25",  # ENOTTY
    "no-es-asid": "failed to initialize ret=-16",  # EBUSY
}


@pytest.fixture
def es_guest(launch_guest: Launcher, vcpus: int, policy: int, init_path: str | None) -> Launch:
    """A guest of the default parameters."""
    return launch_guest(vcpus=vcpus, policy=policy, init_path=init_path)


@pytest.mark.requirement("INIT-1")
def test_es_policy_takes_an_es_path(es_guest: Launch) -> None:
    """A policy with the ES bit initialises with KVM_SEV_ES_INIT or KVM_SEV_INIT2."""
    timeline = es_guest.attempted(Stage.INITIALISED).timeline
    assert set(names(timeline.init)) <= set(ES_INIT_PATHS)


@pytest.mark.requirement("INIT-2")
@WITHOUT_ES
@FEW_VCPUS
def test_policy_without_es_takes_no_es_path(launch_guest: Launcher, vcpus: int, policy: int) -> None:
    """A policy without the ES bit initialises as plain SEV (control)."""
    timeline = launch_guest(vcpus=vcpus, policy=policy).attempted(Stage.INITIALISED).timeline
    assert "KVM_SEV_ES_INIT" not in names(timeline.init)
    assert timeline.vm_type != kvm.KVM_X86_SEV_ES_VM


@pytest.mark.requirement("INIT-2")
def test_plain_guest_takes_no_sev_path(launch_guest: Launcher) -> None:
    """A guest without a policy issues no SEV command at all (control)."""
    launch = launch_guest(policy=None).reached(Stage.RUNNING)
    assert names(event for event in launch.timeline.events if event.sev) == []


@pytest.mark.requirement("INIT-3")
def test_initialised_once_before_the_first_vcpu(es_guest: Launch) -> None:
    """The VM is initialised exactly once, before its first vCPU exists."""
    timeline = es_guest.reached(Stage.INITIALISED).timeline
    assert len(timeline.init) == 1
    assert before(timeline.vcpu_creations, timeline.init[0]) == []


@pytest.mark.requirement("INIT-4")
def test_vm_type_matches_the_init_command(es_guest: Launch) -> None:
    """The type of the VM is the one that its init command needs."""
    timeline = es_guest.attempted(Stage.INITIALISED).timeline
    assert timeline.vm_type in TYPES[SevCmd(timeline.init[0].command.id)]


@pytest.mark.requirement("INIT-5")
@pytest.mark.parametrize("fault", DIAGNOSTICS)
def test_host_without_es_is_refused(launch_guest: Launcher, fault: str) -> None:
    """A host that cannot do SEV-ES ends the launch with a diagnostic; no guest runs, and none without ES."""
    launch = launch_guest(faults=[fault])
    assert launch.timeline.runs == ()
    assert "KVM_SEV_INIT" not in names(launch.timeline.init)
    assert DIAGNOSTICS[fault] in launch.stderr.text


@pytest.mark.requirement("INIT-5")
@pytest.mark.parametrize("fault", DIAGNOSTICS)
def test_host_without_es_is_refused_cleanly(launch_guest: Launcher, fault: str) -> None:
    """The refusal is an exit with a status other than 0, not a crash."""
    launch = launch_guest(faults=[fault])
    assert launch.exit.signal is None
    assert launch.exit.status != 0


@pytest.mark.requirement("INIT-6")
@FEW_VCPUS
def test_init2_arguments(launch_guest: Launcher, sev_host: Target, vcpus: int) -> None:
    """KVM_SEV_INIT2 is given no flags, no unsupported feature, and a GHCB version that the kernel takes."""
    launch = launch_guest(vcpus=vcpus, init_path="INIT2").attempted(Stage.INITIALISED)
    (init,) = launch.timeline.init
    given = init.command.before
    assert given["flags"] == 0
    assert given["vmsa_features"] & ~(sev_host.facts.vmsa_features or 0) == 0
    assert init.succeeded, f"{init}, GHCB version {given['ghcb_version']}"


@pytest.mark.requirement("INIT-7")
def test_launch_start_carries_the_policy(es_guest: Launch, policy: int) -> None:
    """LAUNCH_START hands the firmware the requested policy, bit for bit."""
    launch = es_guest.attempted(Stage.STARTED)
    starts = launch.timeline.commands(SevCmd.KVM_SEV_LAUNCH_START)
    assert [start.command.before["policy"] for start in starts] == [policy]


@pytest.mark.requirement("INIT-7")
def test_launch_start_carries_the_owner_session(launch_guest: Launcher, owner: Owner) -> None:
    """LAUNCH_START hands the firmware the owner's certificate and session, byte for byte."""
    launch = launch_guest(policy=owner.policy, session=owner.files).attempted(Stage.STARTED)
    start = launch.timeline.commands(SevCmd.KVM_SEV_LAUNCH_START)[0]
    assert [part.raw for part in start.command.memory] == [owner.dh_cert, owner.session]
    assert start.succeeded, str(start)


@pytest.mark.requirement("INIT-8")
@FEW_VCPUS
def test_query_sev_reports_the_launch(
    launch_guest: Launcher, sev_host: Target, vcpus: int, policy: int
) -> None:
    """query-sev reports policy and firmware version, and launch-secret before it runs."""
    launch = launch_guest(vcpus=vcpus, policy=policy, paused=True).reached(Stage.RUNNING)
    if len(launch.qmp.all("query-sev")) == 1:  # its VM stopped before every vCPU ran: asked no second time
        raise Undecided(f"{launch.host}: it was not asked while it ran: {launch.account()}")
    status = sev_host.facts.platform
    before, running = launch.qmp.replies("query-sev")
    assert [reply["policy"] for reply in (before, running)] == [policy, policy]
    assert [reply["state"] for reply in (before, running)] == ["launch-secret", "running"]
    assert status is not None
    version = (status.api_major, status.api_minor, status.build)
    reported = [(reply["api-major"], reply["api-minor"], reply["build-id"]) for reply in (before, running)]
    assert reported == [version, version]
