# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM: the commands of a launch, out of order, twice, or on the wrong VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.calls import (
    At,
    Step,
    create_vcpu,
    create_vm,
    memory,
    needed,
    open_kvm,
    open_sev,
    run,
    sev,
    structure,
)
from pytest_seves.guest.init_path import POLICY, InitPath, measure
from pytest_seves.spec.kvm import (
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_UNKNOWN,
    KVM_GET_SREGS,
    KVM_X86_DEFAULT_VM,
)
from pytest_seves.spec.sev import (
    KVM_SEV_LAUNCH_MEASURE_DATA,
    MEASUREMENT_SIZE,
    FirmwareStatus,
    Policy,
    SevCmd,
)

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm

UPDATE_DATA = (memory("page"), sev(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, uaddr=At("page"), len=4096))
UPDATE_VMSA = sev(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)
FINISH = sev(SevCmd.KVM_SEV_LAUNCH_FINISH)
MEASURED_WITHOUT_VMSA = needed(measure())


@pytest.mark.requirement("KVM-3")
def test_vmsa_twice(kvm: Kvm, es_path: InitPath) -> None:
    """A second LAUNCH_UPDATE_VMSA, refused with EINVAL or passed on, leaves the vCPU protected."""
    registers = structure(KVM_GET_SREGS)
    *_, before, again, after = kvm(es_path.protected(), registers, UPDATE_VMSA, registers)
    assert again.errno in (None, "EINVAL")
    assert (after.errno, after.out) == (before.errno, before.out)


@pytest.mark.requirement("KVM-4")
def test_vmsa_without_es(kvm: Kvm) -> None:
    """LAUNCH_UPDATE_VMSA of a SEV guest without ES is refused with ENOTTY."""
    vm = kvm(
        needed(open_kvm(), open_sev(), create_vm(KVM_X86_DEFAULT_VM), sev(SevCmd.KVM_SEV_INIT)),
        needed(create_vcpu(0), sev(SevCmd.KVM_SEV_LAUNCH_START, policy=int(Policy.NODBG))),
        UPDATE_VMSA,
    )
    assert vm[-1].errno == "ENOTTY"


@pytest.mark.requirement("KVM-5")
@pytest.mark.parametrize(
    ("before", "command"),
    [
        pytest.param((), FINISH, id="finish-before-measure"),
        pytest.param(
            (MEASURED_WITHOUT_VMSA, needed(UPDATE_DATA[0])), UPDATE_DATA[1], id="data-after-measure"
        ),
        pytest.param((MEASURED_WITHOUT_VMSA,), UPDATE_VMSA, id="vmsa-after-measure"),
        pytest.param(
            (MEASURED_WITHOUT_VMSA, needed(memory("again"))), measure("again")[1], id="measure-twice"
        ),
        pytest.param((MEASURED_WITHOUT_VMSA, needed(FINISH)), FINISH, id="finish-twice"),
    ],
)
def test_out_of_order(kvm: Kvm, es_path: InitPath, before: tuple[Step, ...], command: Step) -> None:
    """A launch command out of order ends with EIO and the firmware's INVALID_GUEST_STATE."""
    answer = kvm(es_path.started(), before, command)[-1]
    assert answer.errno == "EIO"
    assert answer.firmware == FirmwareStatus.INVALID_GUEST_STATE


@pytest.mark.requirement("KVM-19")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(sev(SevCmd.KVM_SEV_LAUNCH_START, policy=POLICY), id="start"),
        pytest.param(UPDATE_DATA[1], id="update-data"),
        pytest.param(UPDATE_VMSA, id="update-vmsa"),
        pytest.param(measure("page")[1], id="measure"),
        pytest.param(FINISH, id="finish"),
    ],
)
def test_before_init(kvm: Kvm, command: Step) -> None:
    """A launch command is refused with ENOTTY on a VM that no init command made a SEV guest."""
    vm = kvm(needed(open_kvm(), open_sev(), create_vm(KVM_X86_DEFAULT_VM), memory("page")), command)
    assert vm[-1].errno == "ENOTTY"


@pytest.mark.requirement("KVM-6")
def test_measure_tells_its_length(kvm: Kvm, es_path: InitPath) -> None:
    """LAUNCH_MEASURE without room fails with INVALID_LEN and tells the length of a measurement."""
    answer = kvm(es_path.protected(), sev(SevCmd.KVM_SEV_LAUNCH_MEASURE, len=0))[-1]
    assert answer.errno == "EIO"
    assert answer.firmware == FirmwareStatus.INVALID_LEN
    assert answer.decode(KVM_SEV_LAUNCH_MEASURE_DATA)["len"] == MEASUREMENT_SIZE


@pytest.mark.requirement("KVM-12")
def test_a_late_vcpu_is_not_measured(kvm: Kvm, es_path: InitPath) -> None:
    """LAUNCH_UPDATE_VMSA after the launch is refused: EINVAL, or EIO with INVALID_GUEST_STATE."""
    answer = kvm(es_path.launched(), needed(create_vcpu(1, "late")), UPDATE_VMSA)[-1]
    refused = answer.errno == "EIO" and answer.firmware == FirmwareStatus.INVALID_GUEST_STATE
    assert answer.errno == "EINVAL" or refused


@pytest.mark.requirement("KVM-21")
def test_a_late_vcpu_does_not_execute(kvm: Kvm, es_path: InitPath) -> None:
    """KVM_RUN of a vCPU created after the launch is refused, by KVM or by VMRUN: no such state is run."""
    answer = kvm(es_path.launched(), needed(create_vcpu(1, "late")), run("late"))[-1]
    assert answer.errno in (None, "EINVAL")
    assert answer.exit_reason == (KVM_EXIT_FAIL_ENTRY if answer.ok else KVM_EXIT_UNKNOWN)
