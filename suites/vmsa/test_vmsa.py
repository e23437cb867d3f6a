# SPDX-License-Identifier: GPL-2.0-or-later
"""VMSA: what LAUNCH_UPDATE_VMSA measures, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.registers import registers_before, reset_state, wrong_fields
from pytest_seves.evidence.timeline import Stage, Timeline, after, before, names
from pytest_seves.guest.probe import WITH_X2APIC
from pytest_seves.guest.spec import policy_name
from pytest_seves.spec import kvm
from pytest_seves.spec.sev import SevCmd

if TYPE_CHECKING:
    from pytest_seves.fixtures import Launcher, Target
    from pytest_seves.guest.probe import Probe


@pytest.fixture
def measured(launch_guest: Launcher, vcpus: int, policy: int, init_path: str | None) -> Timeline:
    """Timeline of a launch that came to its measurement."""
    launch = launch_guest(vcpus=vcpus, policy=policy, init_path=init_path)
    return launch.reached(Stage.MEASURED).timeline


@pytest.mark.requirement("VMSA-1")
def test_every_vcpu_is_measured(measured: Timeline, vcpus: int) -> None:
    """LAUNCH_UPDATE_VMSA covers every vCPU the VMM created."""
    assert measured.created_vcpus == list(range(vcpus))
    assert sorted(set(measured.measured_vcpus)) == measured.created_vcpus


@pytest.mark.requirement("VMSA-1")
@pytest.mark.parametrize("vcpus", [260], ids=["260vcpu"])
def test_more_vcpus_than_apic_ids_of_8_bits_are_measured(probe: Probe, vcpus: int) -> None:
    """LAUNCH_UPDATE_VMSA covers 260 vCPUs too."""
    timeline = probe(vcpus=vcpus, **WITH_X2APIC).reached(Stage.MEASURED).timeline
    assert timeline.created_vcpus == list(range(vcpus))
    assert timeline.measured_vcpus == timeline.created_vcpus


@pytest.mark.requirement("VMSA-2")
def test_measured_between_the_last_data_and_the_measurement(measured: Timeline) -> None:
    """LAUNCH_UPDATE_VMSA comes after all vCPUs and data, before LAUNCH_MEASURE."""
    update = measured.last(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)
    late = measured.requests(kvm.KVM_CREATE_VCPU) + measured.commands(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA)
    assert names(after(late, update)) == []
    assert names(before(measured.measures, update)) == []


@pytest.mark.requirement("VMSA-3")
def test_no_vcpu_is_measured_twice(measured: Timeline) -> None:
    """Each vCPU is measured exactly once."""
    assert names(after(measured.vmsa_updates, measured.vmsa_update)) == []
    assert len(measured.measured_vcpus) == len(set(measured.measured_vcpus))


@pytest.mark.requirement("VMSA-4")
@pytest.mark.parametrize("policy", [0x0, 0x1, 0x3], ids=policy_name)
@pytest.mark.parametrize("vcpus", [1, 3], ids=["1vcpu", "3vcpu"])
def test_policy_without_es_measures_no_vcpu(launch_guest: Launcher, vcpus: int, policy: int) -> None:
    """LAUNCH_UPDATE_VMSA is not issued for a plain SEV guest (control)."""
    timeline = launch_guest(vcpus=vcpus, policy=policy).reached(Stage.MEASURED).timeline
    assert timeline.commands(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA) == ()


@pytest.mark.requirement("VMSA-5")
def test_vmsa_holds_the_reset_state(measured: Timeline, sev_host: Target, vcpus: int) -> None:
    """The registers measured are those of reset, field by field, for BSP and APs."""
    table = sev_host.facts.firmware.table
    assert table is not None
    update, fpu = measured.vmsa_update, measured.init_path == SevCmd.KVM_SEV_INIT2
    wrong = {}
    for vcpu in range(vcpus):
        address = table.reset_address if vcpu else None
        wanted = reset_state(signature=measured.cpu_signature(vcpu), reset_address=address, fpu=fpu)
        wrong[vcpu] = wrong_fields(wanted, registers_before(measured, vcpu, update))
    assert {vcpu: fields for vcpu, fields in wrong.items() if fields} == {}


@pytest.mark.requirement("VMSA-6")
def test_measured_registers_are_left_alone(measured: Timeline) -> None:
    """After LAUNCH_UPDATE_VMSA the VMM writes no registers of a measured vCPU."""
    assert names(after(measured.register_writes(), measured.vmsa_update)) == []


@pytest.mark.requirement("VMSA-7")
@pytest.mark.parametrize("vcpus", [1, 3], ids=["1vcpu", "3vcpu"])
def test_failed_update_ends_the_launch(launch_guest: Launcher, vcpus: int) -> None:
    """A LAUNCH_UPDATE_VMSA that fails ends the launch with a diagnostic; the guest never runs."""
    launch = launch_guest(vcpus=vcpus, faults=["vmsa-update-refused"])
    assert launch.timeline.last(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA).failed
    assert "LAUNCH_UPDATE_VMSA" in launch.stderr.text
    assert launch.timeline.runs == ()
    assert launch.timeline.stage < Stage.FINISHED
    assert launch.exit.signal is None
    assert launch.exit.status != 0
