# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_MSRS and KVM_SET_MSRS: x86.c msr_io(), and svm.c sev_es_prevent_msr_access() of Linux 6.10 on.

Once a vCPU's state is protected, newer kernels keep their hands off the registers that the guest reaches
without an intercept: of the default VM type such a read gives 0 and such a write is lost, of a type with
protected state both fail.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..spec import kvm

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu
    from .supervisor import Call

_XSS = 0xDA0
#: Not intercepted for a SEV-ES guest: those of every AMD guest, EFER and PAT (sev_es_init_vmcb()), LBR
#: (svm_enable_lbrv()), SPEC_CTRL where it is virtual.
_PASSED_THROUGH = frozenset(
    {
        *(0x48, 0x174, 0x175, 0x176, 0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE, 0x277),
        *range(0xC0000080, 0xC0000085),
        *range(0xC0000100, 0xC0000103),
        0xC0010130,  # the GHCB's address
    }
)
_CPUID_XSAVE, _XSAVES = (0xD, 1), 1 << 3


def get_msrs(vcpu: Vcpu, call: Call) -> int:
    """How many entries were read, up to the first that fails."""
    entries = _accessible(vcpu, call)
    values = (0 if hidden else vcpu.msrs.get(index, 0) for index, _, hidden in entries)
    out = b"".join(
        struct.pack("<IIQ", index, 0, value) for (index, _, _), value in zip(entries, values, strict=True)
    )
    if out:
        vcpu.memory.write(call.argument + kvm.MSRS.size, out)
    return len(entries)


def set_msrs(vcpu: Vcpu, call: Call) -> int:
    """How many entries were written, up to the first that fails."""
    entries = _accessible(vcpu, call)
    for index, value, hidden in entries:
        if not hidden:
            vcpu.msrs[index] = value
    return len(entries)


def _accessible(vcpu: Vcpu, call: Call) -> list[tuple[int, int, bool]]:
    """(index, value, hidden) up to the first register that is unknown or refused."""
    (count,) = struct.unpack("<I", vcpu.memory.read(call.argument, 4))
    raw = vcpu.memory.read(call.argument + kvm.MSRS.size, count * kvm.MSR_ENTRY.size) if count else b""
    xss_hidden = vcpu.profile.xss_hidden and _has_xsaves(vcpu) if _hides(vcpu) else False
    entries: list[tuple[int, int, bool]] = []
    for index, _, value in struct.iter_unpack("<IIQ", raw):
        hidden = _hides(vcpu) and (index in _PASSED_THROUGH or (index == _XSS and xss_hidden))
        if vcpu.sealed if hidden else not vcpu.profile.knows_msr(index):
            break
        entries.append((index, value, hidden))
    return entries


def _hides(vcpu: Vcpu) -> bool:
    return vcpu.protected and vcpu.profile.msrs_hidden


def _has_xsaves(vcpu: Vcpu) -> bool:
    """Without XSAVES in the guest's CPUID, IA32_XSS is intercepted."""
    return any(
        (leaf["function"], leaf["index"]) == _CPUID_XSAVE and leaf["eax"] & _XSAVES
        for leaf in kvm.cpuid_entries(vcpu.cpuid or bytes(kvm.CPUID2.size))
    )
