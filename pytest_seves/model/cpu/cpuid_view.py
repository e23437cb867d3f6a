# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID as the guest sees it: what the VMM has set, less what the engine cannot execute.

The engine has no AVX, XSAVE, SHA and nested SVM, 40 physical address bits, and its C-bit at position 39.
"""

from __future__ import annotations

from ...spec import kvm
from .nested_paging import C_BIT

Leaf = tuple[int, int, int, int]

_SIGNIFICANT_INDEX = 1
_ENCRYPTION = 0x8000001F
_REDUCED_BITS = 1 << 6
_PHYSICAL_BITS = 40
#: (function, register) to bits that are taken away.
_MISSING = {
    (0x1, 2): 1 << 12 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29,  # FMA, XSAVE, OSXSAVE, AVX, F16C
    (0x7, 1): 1 << 5 | 1 << 29,  # AVX2, SHA
    (0x7, 2): 0xFFFFFFFF,
    (0x7, 3): 0xFFFFFFFF,
    (0xD, 0): 0xFFFFFFFF,
    (0xD, 1): 0xFFFFFFFF,
    (0xD, 2): 0xFFFFFFFF,
    (0xD, 3): 0xFFFFFFFF,
    (0x40000001, 0): 0xFFFFFFFF,  # no paravirtual clock or interrupts
    (0x80000001, 2): 1 << 2 | 1 << 11 | 1 << 16 | 1 << 23,  # SVM, XOP, FMA4, PERFCTR_CORE
    (0x80000001, 3): 1 << 26,  # 1 GiB pages
    (0x8000000A, 0): 0xFFFFFFFF,
    (0x8000000A, 1): 0xFFFFFFFF,
    (0x8000000A, 3): 0xFFFFFFFF,
}


class CpuidView:
    """One vCPU's.

    :param raw: the kvm_cpuid2 that KVM_SET_CPUID2 has set.
    """

    def __init__(self, raw: bytes, *, encrypted: bool) -> None:
        self._encrypted = encrypted
        self._plain: dict[int, Leaf] = {}
        self._indexed: dict[tuple[int, int], Leaf] = {}
        for entry in kvm.cpuid_entries(raw or bytes(kvm.CPUID2.size)):
            leaf = self._reduced(entry["function"], *(entry[name] for name in ("eax", "ebx", "ecx", "edx")))
            if entry["flags"] & _SIGNIFICANT_INDEX:
                self._indexed[entry["function"], entry["index"]] = leaf
            else:
                self._plain[entry["function"]] = leaf

    def __call__(self, function: int, index: int) -> Leaf:
        """EAX, EBX, ECX, EDX; zeros for a leaf that is not there."""
        function, index = function & 0xFFFFFFFF, index & 0xFFFFFFFF
        return self._indexed.get((function, index)) or self._plain.get(function) or (0, 0, 0, 0)

    def _reduced(self, function: int, *values: int) -> Leaf:
        eax, ebx, ecx, edx = (
            value & ~_MISSING.get((function, register), 0) for register, value in enumerate(values)
        )
        if function == 0x80000008:
            eax = eax & ~0xFF | _PHYSICAL_BITS
        if function == _ENCRYPTION and self._encrypted:
            ebx = C_BIT | _REDUCED_BITS
        return eax, ebx, ecx, edx
