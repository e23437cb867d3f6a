# SPDX-License-Identifier: GPL-2.0-or-later
"""Which special registers KVM accepts: Linux 6.1 x86.c kvm_is_valid_sregs()."""

from __future__ import annotations

from ..spec import kvm

_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5


def valid_sregs(raw: bytes) -> bool:
    """kvm_isvalid_sregs(): long mode must be consistent."""
    fields = kvm.SREGS.decode(raw)
    efer, long_mode = fields["efer"], bool(fields["efer"] & _EFER_LMA)
    if efer & _EFER_LME and fields["cr0"] & _CR0_PG:
        return bool(fields["cr4"] & _CR4_PAE) and long_mode
    return not long_mode and not fields["cs"]["l"]
