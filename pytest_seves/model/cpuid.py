# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUID instruction of the machine that carries the model."""

from __future__ import annotations

import ctypes
import mmap

# push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid; mov [r8],eax; mov [r8+4],ebx; mov [r8+8],ecx;
# mov [r8+12],edx; pop rbx; ret
_CODE = bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")

CPUID_ENCRYPTION = 0x8000001F


def native(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX as any process on this machine sees them."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_CODE)
    out = (ctypes.c_uint32 * 4)()
    anchor = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(
        ctypes.addressof(anchor)
    )
    function(leaf, subleaf, ctypes.addressof(out))
    del anchor
    page.close()
    return out[0], out[1], out[2], out[3]


def published_encryption_ebx() -> int:
    """EBX of CPUID 0x8000001F that the model publishes.

    A VMM executes CPUID itself to check its C-bit option, and we cannot answer for the CPU: so the model
    publishes the C-bit that the CPU answers. A CPU without the leaf gives C-bit 0 and one reduced bit.
    """
    leaves = native(0x80000000)[0]
    ebx = native(CPUID_ENCRYPTION)[1] if leaves >= CPUID_ENCRYPTION else 0
    c_bit = ebx & 0x3F
    reduced = ebx >> 6 & 0x3F or 1
    return c_bit | reduced << 6
