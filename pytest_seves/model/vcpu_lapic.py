# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_LAPIC and KVM_SET_LAPIC: Linux arch/x86/kvm/x86.c kvm_vcpu_ioctl_get_lapic()."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from . import vcpu_reset

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu
    from .supervisor import Call


def set_lapic(vcpu: Vcpu, call: Call) -> int:
    """Take the registers over; of a vCPU that has not begun they wait."""
    if not vcpu.vm.in_kernel_lapic:
        return -errno.EINVAL
    vcpu.lapic_page = vcpu.memory.read(call.argument, call.size)
    machine = vcpu.vm.machine
    lapic = machine.lapic_of(vcpu) if machine is not None else None
    if machine is not None and lapic is not None:
        lapic.restore(vcpu.lapic_page, machine.now_ns)
    return 0


def get_lapic(vcpu: Vcpu, call: Call) -> int:
    """The registers as they are."""
    if not vcpu.vm.in_kernel_lapic:
        return -errno.EINVAL
    machine = vcpu.vm.machine
    lapic = machine.lapic_of(vcpu) if machine is not None else None
    if machine is not None and lapic is not None:
        page = lapic.state(machine.now_ns)
    else:
        page = vcpu.lapic_page or vcpu_reset.lapic(vcpu.identifier)
    vcpu.memory.write(call.argument, page)
    return 0
