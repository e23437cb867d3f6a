# SPDX-License-Identifier: GPL-2.0-or-later
"""sev_es_sync_vmsa(): a vCPU's save area as KVM writes it before the firmware encrypts it.

Source: Linux arch/x86/kvm/svm/{sev,svm}.c, 6.1 to 7.2. KVM sets EFER.SVME, keeps the host's CR4.MCE on, and
takes CD and NW out of CR0. The FPU's fields stay zero for a VM of the default type; others fill them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from ..spec import kvm, vmsa

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu

_EFER_SVME = 1 << 12
_CR4_MCE = 1 << 6
_CR0_CD_NW = 0x6000_0000
_MSRS = {
    number: name
    for number, name in vmsa.MSR_FIELDS.items()
    if name not in ("xss", "dbgctl", "tsc_aux")  # xss is KVM's own copy, the others are not in the VMCB
}
_MSR_XSS = 0xDA0


def compose(vcpu: Vcpu, sev_features: int) -> bytes:
    """The 4096-byte page."""
    values = {**_values(vcpu), "sev_features": sev_features}
    if vcpu.vm.vm_type != kvm.KVM_X86_DEFAULT_VM:
        values.update(vcpu.fpu.vmsa_fields())
    return vmsa.VMSA.encode(**values).ljust(vmsa.VMSA_PAGE_SIZE, b"\0")


def _values(vcpu: Vcpu) -> dict[str, Any]:
    registers = kvm.REGS.decode(vcpu.regs)
    special = kvm.SREGS.decode(vcpu.sregs)
    values: dict[str, Any] = dict(registers)
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr"):
        values[name] = segment(special[name])
    values["ldtr"] = segment(special["ldt"])
    for name, table in (("gdtr", "gdt"), ("idtr", "idt")):
        values[name] = {"limit": special[table]["limit"], "base": special[table]["base"]}
    values.update(
        cpl=special["ss"]["dpl"] & 3,
        efer=special["efer"] | _EFER_SVME,
        cr0=special["cr0"] & ~_CR0_CD_NW,
        cr2=special["cr2"],
        cr3=special["cr3"],
        cr4=special["cr4"] | _CR4_MCE,
        dr6=struct.unpack_from("<Q", vcpu.debugregs, 32)[0],
        dr7=vcpu.dr7,
        xcr0=vcpu.xcr0,
        xss=vcpu.msrs.get(_MSR_XSS, 0),
    )
    values.update({name: vcpu.msrs[number] for number, name in _MSRS.items() if number in vcpu.msrs})
    return values


def segment(fields: dict[str, int]) -> dict[str, int]:
    """kvm_segment to the VMCB's form: svm_set_segment()."""
    present = fields["present"] and not fields["unusable"]
    attributes = (
        fields["type"] & 0xF
        | (fields["s"] & 1) << 4
        | (fields["dpl"] & 3) << 5
        | (1 << 7 if present else 0)
        | (fields["avl"] & 1) << 8
        | (fields["l"] & 1) << 9
        | (fields["db"] & 1) << 10
        | (fields["g"] & 1) << 11
    )
    return {
        "selector": fields["selector"],
        "attrib": attributes,
        "limit": fields["limit"],
        "base": fields["base"],
    }
