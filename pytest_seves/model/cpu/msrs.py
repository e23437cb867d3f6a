# SPDX-License-Identifier: GPL-2.0-or-later
"""RDMSR and WRMSR as KVM emulates them: APIC registers, TSC, and the values that it keeps.

Source: Linux arch/x86/kvm/x86.c kvm_get_msr_common(), lapic.c kvm_lapic_reg_read().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...spec import kvm
from ...spec.ghcb import SEV_STATUS_MSR
from . import lapic as apic

if TYPE_CHECKING:
    from .processor import Processor

TSC, APIC_BASE, TSC_DEADLINE, EFER, TSC_AUX = 0x10, 0x1B, 0x6E0, 0xC0000080, 0xC0000103
_MTRR_CAPABILITY, _X2APIC_FIRST, _X2APIC_LAST = 0xFE, 0x800, 0x8FF
_INITIAL = {_MTRR_CAPABILITY: 0x508, 0x2FF: 0, 0x8B: 0x01000065, 0x17: 0}
_PREDICTION_COMMAND, _BARRIER = 0x49, 1  # IA32_PRED_CMD and its IBPB
_HAS_BARRIER = 1 << 12  # CPUID 0x80000008 EBX


class UnknownMsr(Exception):
    """KVM would inject #GP."""


def read(processor: Processor, number: int) -> int:
    """The value.

    :raise UnknownMsr: KVM does not know it.
    """
    machine, lapic = processor.machine, processor.lapic
    if number == APIC_BASE:
        return lapic.base
    if number == TSC:
        return machine.tsc
    if number == TSC_DEADLINE:
        return lapic.tsc_deadline
    if number == SEV_STATUS_MSR:
        return processor.sev_status
    if _X2APIC_FIRST <= number <= _X2APIC_LAST:
        if not lapic.x2apic:
            raise UnknownMsr(hex(number))
        register = (number - _X2APIC_FIRST) << 4
        value = lapic.read(register, machine.now_ns)
        return value | lapic.registers.get(apic.ICR2, 0) << 32 if register == apic.ICR else value
    if not processor.vcpu.profile.knows_msr(number) and number not in _INITIAL:
        raise UnknownMsr(hex(number))
    return processor.vcpu.msrs.get(number, _INITIAL.get(number, 0))


def write(processor: Processor, number: int, value: int) -> None:
    """Write it.

    :raise UnknownMsr: KVM does not know it.
    """
    machine, lapic = processor.machine, processor.lapic
    if number == APIC_BASE:
        lapic.base = value
        at = kvm.SREGS.field("apic_base").offset
        sregs = processor.vcpu.sregs
        processor.vcpu.sregs = sregs[:at] + value.to_bytes(8, "little") + sregs[at + 8 :]
    elif number == TSC:
        return  # every vCPU's TSC is the VM's time
    elif number == TSC_DEADLINE:
        lapic.set_tsc_deadline(value, machine.time_of_tsc(value))
    elif _X2APIC_FIRST <= number <= _X2APIC_LAST:
        if not lapic.x2apic:
            raise UnknownMsr(hex(number))
        register = (number - _X2APIC_FIRST) << 4
        processor.write_lapic(register, value)
        if register == apic.ICR:
            lapic.registers[apic.ICR2] = value >> 32
    elif number == _PREDICTION_COMMAND:  # svm_set_msr(): write-only, and nothing to forget here
        if value & ~_BARRIER or not processor.cpuid(0x80000008, 0)[1] & _HAS_BARRIER:
            raise UnknownMsr(hex(number))
    elif processor.vcpu.profile.knows_msr(number):
        processor.vcpu.msrs[number] = value
    else:
        raise UnknownMsr(hex(number))
