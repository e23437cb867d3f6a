# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID of the host, raw."""

from __future__ import annotations

import array
import errno
import mmap
import os
import struct
from collections.abc import Iterable
from typing import Any

LEAVES = (0, 1, 0x80000000, 0x80000002, 0x80000003, 0x80000004, 0x80000008, 0x8000001F)

# rdi: 16 bytes for the answer, esi: leaf, edx: subleaf. RBX belongs to the caller.
_CODE = bytes.fromhex(
    "53"  # push rbx
    "89f0 89d1"  # mov eax, esi; mov ecx, edx
    "0fa2"  # cpuid
    "8907 895f04 894f08 89570c"  # mov [rdi + 0/4/8/12], eax/ebx/ecx/edx
    "5b c3"  # pop rbx; ret
)


def read(leaves: Iterable[int]) -> dict[str, Any]:
    """Registers EAX, EBX, ECX, EDX of each leaf (subleaf 0) by ``hex(leaf)``, and where they are from.

    The kernel's device first; the instruction itself where the device is closed to us, all leaves on one CPU.
    """
    try:
        return {"source": "/dev/cpu/0/cpuid", "leaves": _device(leaves)}
    except OSError as error:
        device = {"errno": errno.errorcode.get(error.errno or 0, str(error.errno)), "error": str(error)}
    try:
        return {"source": "native", "leaves": _native(leaves), "device": device}
    except (OSError, ValueError, ImportError) as error:
        return {"source": None, "leaves": {}, "device": device, "error": f"{type(error).__name__}: {error}"}


def _device(leaves: Iterable[int]) -> dict[str, list[int]]:
    descriptor = os.open("/dev/cpu/0/cpuid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        answers = {}
        for leaf in leaves:
            raw = os.pread(descriptor, 16, leaf)  # the subleaf, 0, would be bits 63:32
            if len(raw) != 16:
                raise OSError(
                    errno.EIO, f"/dev/cpu/0/cpuid: wanted 16 bytes of leaf {leaf:#x}, got {len(raw)}"
                )
            answers[hex(leaf)] = list(struct.unpack("<4I", raw))
        return answers
    finally:
        os.close(descriptor)


def _native(leaves: Iterable[int]) -> dict[str, list[int]]:
    if os.uname().machine != "x86_64":
        raise ValueError(f"CPUID is of x86-64; this is {os.uname().machine}")
    import ctypes  # not part of every Python build, and needed only here

    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_CODE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)(start)
        answers = {}
        for leaf in leaves:
            answer = array.array("I", (0, 0, 0, 0))
            run(answer.buffer_info()[0], leaf, 0)
            answers[hex(leaf)] = answer.tolist()
        return answers
    finally:
        os.sched_setaffinity(0, allowed)
