# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of a protected vCPU as a kernel that is wrong on purpose shows them, or lets them be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import kvm

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu
    from .supervisor import Call


def shown(vcpu: Vcpu) -> bool:
    """Whether KVM_GET_SREGS gives all of a protected vCPU's registers: since the guest executes."""
    return vcpu.profile.wrong_registers_shown and vcpu.vm.machine is not None


def set_regs(vcpu: Vcpu, call: Call) -> int:
    """KVM_SET_REGS: what it changes in KVM's copy of a protected vCPU changes in the guest."""
    before = vcpu.regs
    result = vcpu.set_regs(call)
    if vcpu.protected and vcpu.profile.wrong_registers_written and vcpu.vm.machine is not None:
        old = kvm.REGS.decode(before)
        changed = {name: value for name, value in kvm.REGS.decode(vcpu.regs).items() if value != old[name]}
        vcpu.vm.machine.overwrite(vcpu, changed)
    return result
