# SPDX-License-Identifier: GPL-2.0-or-later
"""SMM: a SEV-ES guest has no system management mode, since entering it means to change the registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.timeline import Stage, after
from pytest_seves.guest.calls import check_extension, ioctl
from pytest_seves.guest.init_path import InitPath
from pytest_seves.spec import kvm as spec

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm, Launcher

DIAGNOSTIC = "System Management Mode not supported"


@pytest.mark.requirement("SMM-1")
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_smm_on_is_refused(launch_guest: Launcher, machine: str) -> None:
    """smm=on ends the launch with the SMM diagnostic and status 1; nothing runs."""
    launch = launch_guest(machine={"type": machine, "smm": "on"}).initialised_for()
    assert launch.timeline.runs == ()
    assert DIAGNOSTIC in launch.stderr.text
    assert (launch.exit.signal, launch.exit.status) == (None, 1)


@pytest.mark.requirement("SMM-2")
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_smm_auto_is_off(launch_guest: Launcher, machine: str) -> None:
    """smm=auto launches, and no memory slot belongs to the address space of SMM."""
    launch = launch_guest(machine={"type": machine, "smm": "auto"}).reached(Stage.RUNNING)
    assert launch.timeline.memory_address_spaces == {spec.ADDRESS_SPACE_NORMAL}


@pytest.mark.requirement("SMM-4")
def test_the_vm_is_asked_for_smm(launch_guest: Launcher) -> None:
    """After its initialisation the VM is asked for KVM_CAP_X86_SMM, whatever /dev/kvm says, and answers 0."""
    timeline = launch_guest().initialised_for().timeline
    asked = after(timeline.capability_checks(spec.KVM_CAP_X86_SMM), timeline.init[0])
    assert {event.result for event in asked if event.vm == timeline.vm} == {0}


@pytest.mark.requirement("SMM-5")
def test_smm_on_without_encryption(launch_guest: Launcher) -> None:
    """smm=on launches a guest without encryption, and memory of SMM is registered (control)."""
    timeline = launch_guest(policy=None, machine={"smm": "on"}).timeline
    asked = timeline.capability_checks(spec.KVM_CAP_X86_SMM)
    if asked and not any(event.result for event in asked):
        pytest.skip("this kernel has no SMM: KVM_CAP_X86_SMM is 0 on a VM without encryption")
    assert timeline.stage == Stage.RUNNING
    assert timeline.memory_address_spaces == {spec.ADDRESS_SPACE_NORMAL, spec.ADDRESS_SPACE_SMM}


@pytest.mark.requirement("SMM-6")
def test_smi_is_refused(kvm: Kvm, es_path: InitPath) -> None:
    """KVM_SMI of a vCPU of a SEV-ES guest is refused."""
    offered = check_extension(spec.KVM_CAP_X86_SMM, on="kvm")
    *_, smm, smi = kvm(es_path.protected(), offered, ioctl(spec.KVM_SMI, "vcpu"))
    if smm.result == 0:
        pytest.skip("this kernel has no SMM: KVM_CAP_X86_SMM is 0 on /dev/kvm")
    assert not smi.ok
