# SPDX-License-Identifier: GPL-2.0-or-later
"""REGISTERS: what KVM itself answers about the registers of a protected vCPU, without a VMM in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.calls import Step, ioctl, msrs, needed, structure
from pytest_seves.guest.init_path import ES_INIT, InitPath
from pytest_seves.spec import kvm as spec

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm

PAT = 0x277  # the guest reaches it by itself
GETS = (
    *(spec.KVM_GET_REGS, spec.KVM_GET_SREGS, spec.KVM_GET_SREGS2, spec.KVM_GET_FPU),
    *(spec.KVM_GET_XSAVE, spec.KVM_GET_XCRS, spec.KVM_GET_DEBUGREGS),
)
SETS = (
    *(spec.KVM_SET_REGS, spec.KVM_SET_SREGS, spec.KVM_SET_SREGS2, spec.KVM_SET_FPU),
    *(spec.KVM_SET_XSAVE, spec.KVM_SET_XCRS, spec.KVM_SET_DEBUGREGS),
)
CANARY = b"\xa5"


def name(value: object) -> str:
    """``GET_REGS`` for KVM_GET_REGS."""
    return spec.IOCTL_NAMES[value].removeprefix("KVM_") if isinstance(value, int) else str(value)


@pytest.mark.requirement("REGISTERS-8")
@pytest.mark.parametrize("access", [*GETS, *SETS], ids=name)
def test_register_requests(kvm: Kvm, es_path: InitPath, access: int) -> None:
    """On a protected vCPU they reach KVM's shadow alone (KVM_SEV_ES_INIT), or are EINVAL (KVM_SEV_INIT2)."""
    vm = kvm(es_path.protected(), structure(access))
    assert vm[-1].errno == (None if es_path is ES_INIT else "EINVAL")


@pytest.mark.requirement("REGISTERS-10")
@pytest.mark.parametrize("access", [spec.KVM_GET_MSRS, spec.KVM_SET_MSRS], ids=name)
def test_msrs(kvm: Kvm, es_path: InitPath, access: int) -> None:
    """Of an MSR that a protected vCPU reaches by itself, one is processed (KVM_SEV_ES_INIT), or none."""
    vm = kvm(es_path.protected(), msrs(access, PAT))
    assert vm[-1].result == (1 if es_path is ES_INIT else 0)


@pytest.mark.requirement("REGISTERS-9")
@pytest.mark.parametrize(
    ("written", "read"),
    [(spec.KVM_SET_FPU, spec.KVM_GET_FPU), (spec.KVM_SET_XSAVE, spec.KVM_GET_XSAVE)],
    ids=name,
)
def test_no_fpu_state_comes_back(kvm: Kvm, es_path: InitPath, written: int, read: int) -> None:
    """What was in the FPU when the vCPU was measured cannot be read back."""
    canary = structure(written, fill=CANARY) if written == spec.KVM_SET_FPU else xsave(CANARY)
    *start, update = es_path.protected()
    answer = kvm(start, needed(canary), update, structure(read))[-1]
    assert CANARY * 16 not in answer.out


@pytest.mark.requirement("REGISTERS-9")
def test_no_segments_come_back(kvm: Kvm, es_path: InitPath) -> None:
    """KVM_GET_SREGS of a protected vCPU has no segment, no descriptor table, no CR2 and no CR3."""
    answer = kvm(es_path.protected(), structure(spec.KVM_GET_SREGS))[-1]
    values = answer.decode(spec.SREGS)
    control = {"cr0": 0, "cr4": 0, "cr8": 0, "efer": 0, "apic_base": 0}
    assert spec.SREGS.encode(**{**values, **control}) == bytes(spec.SREGS.size)


def xsave(fill: bytes) -> Step:
    """KVM_SET_XSAVE with the SSE registers full of `fill`."""
    area = bytearray(4096)
    area[160:416] = fill * 256
    area[512] = 2
    return ioctl(spec.KVM_SET_XSAVE, "vcpu", bytes(area))
