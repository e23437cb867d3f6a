# SPDX-License-Identifier: GPL-2.0-or-later
"""State of a vCPU after KVM_CREATE_VCPU, what KVM_GET_* answers before any set: kvm_vcpu_reset()."""

from __future__ import annotations

import struct

from ..spec import kvm

_FCW = 0x37F
_MXCSR = 0x1F80
_APIC_BASE = 0xFEE00800
_APIC_BASE_BSP = 1 << 8
_CPUID_SIGNATURE_UNSET = 0x600  # RDX before KVM_SET_CPUID2

REGS = kvm.REGS.encode(rdx=_CPUID_SIGNATURE_UNSET, rip=0xFFF0, rflags=2)
DEBUGREGS = kvm.DEBUGREGS.encode(dr6=0xFFFF0FF0, dr7=0x400)
XCRS = kvm.XCRS.encode(nr_xcrs=1, xcr0={"value": 1})
FPU = struct.pack("<128xH", _FCW).ljust(408, b"\0") + struct.pack("<II", _MXCSR, 0)
XSAVE = (struct.pack("<H22xI", _FCW, _MXCSR).ljust(512, b"\0") + struct.pack("<Q", 0)).ljust(4096, b"\0")
MSRS = {0x277: 0x0007040600070406, 0x1A0: 1}


def _segment(kind: int, *, selector: int = 0, base: int = 0, system: bool = False) -> dict[str, int]:
    return {
        "selector": selector,
        "base": base,
        "limit": 0xFFFF,
        "type": kind,
        "present": 1,
        "s": 0 if system else 1,
    }


def sregs(*, bootstrap: bool, apic_base: int | None = None) -> bytes:
    """kvm_sregs of the BSP, or of an AP; INIT keeps the APIC base."""
    data = {name: _segment(3) for name in ("ds", "es", "fs", "gs", "ss")}
    return kvm.SREGS.encode(
        **data,
        cs=_segment(0xB, selector=0xF000, base=0xFFFF0000),
        tr=_segment(0xB, system=True),
        ldt=_segment(2, system=True),
        gdt={"limit": 0xFFFF},
        idt={"limit": 0xFFFF},
        cr0=0x60000010,
        apic_base=apic_base or _APIC_BASE | (_APIC_BASE_BSP if bootstrap else 0),
    )


def lapic(identifier: int) -> bytes:
    """The 1 KiB register page: APIC ID, version, spurious vector, masked LVTs."""
    page = bytearray(1024)
    struct.pack_into("<I", page, 0x20, (identifier & 0xFF) << 24)
    struct.pack_into("<I", page, 0x30, 0x00050014)
    struct.pack_into("<I", page, 0xE0, 0xFFFFFFFF)
    struct.pack_into("<I", page, 0xF0, 0xFF)
    for register in range(0x320, 0x380, 0x10):
        struct.pack_into("<I", page, register, 0x10000)
    if identifier == 0:
        struct.pack_into("<I", page, 0x350, 0x700)  # LINT0 takes the PICs' interrupts
    return bytes(page)
