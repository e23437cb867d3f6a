# SPDX-License-Identifier: GPL-2.0-or-later
"""The start of unicorn's CPUX86State (QEMU 5.0 target/i386/cpu.h), and where it lies in our own memory.

unicorn's interface has no hidden segment state and no way to see an exit's error code. Offsets are private
to a release: they are found by values that were put in through the interface, and checked.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R11 = 11
ES, CS, SS, DS, FS, GS = range(6)

HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_IOBPT = 1 << 24

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
EFER_SVME = 1 << 12


class Segment(ctypes.Structure):
    """SegmentCache: `flags` is the descriptor's second word."""

    selector: int
    base: int
    limit: int
    flags: int
    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class State(ctypes.Structure):
    """CPUX86State up to EFER."""

    regs: ctypes.Array[ctypes.c_uint64]
    eip: int
    eflags: int
    hflags: int
    segs: ctypes.Array[Segment]
    ldt: Segment
    tr: Segment
    gdt: Segment
    idt: Segment
    cr: ctypes.Array[ctypes.c_uint64]
    efer: int
    _fields_ = (
        ("regs", ctypes.c_uint64 * 16),
        ("eip", ctypes.c_uint64),
        ("eflags", ctypes.c_uint64),
        ("_cc", ctypes.c_uint64 * 3),
        ("_cc_op", ctypes.c_uint32),
        ("_df", ctypes.c_int32),
        ("hflags", ctypes.c_uint32),
        ("_hflags2", ctypes.c_uint32),
        ("segs", Segment * 6),
        ("ldt", Segment),
        ("tr", Segment),
        ("gdt", Segment),
        ("idt", Segment),
        ("cr", ctypes.c_uint64 * 9),
        ("_a20_mask", ctypes.c_int32),
        ("_bnd", ctypes.c_uint64 * 11),
        ("efer", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def peek(address: int, size: int) -> bytes:
    """Up to `size` bytes of our own memory; nothing where there is none."""
    buffer = ctypes.create_string_buffer(size)
    local, remote = _IoVec(ctypes.addressof(buffer), size), _IoVec(address, size)
    got = _libc.process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return buffer.raw[: max(got, 0)]


def find_state(handle: int, pattern: bytes) -> int | None:
    """Address of the structure that begins with `pattern`, reachable from unicorn's handle."""
    for pointer in _pointers(peek(handle, _HANDLE_SIZE)):
        offset = peek(pointer, _OBJECT_SIZE).find(pattern)
        if offset >= 0 and offset % 8 == 0:
            return pointer + offset
    return None


_HANDLE_SIZE = 0x800
_OBJECT_SIZE = 0x10000


def _pointers(raw: bytes) -> Iterator[int]:
    for (value,) in struct.iter_unpack("<Q", raw):
        if 0x10000 <= value < 1 << 47:
            yield value


def array_at(kind: Any, address: int) -> Any:
    """A ctypes view of our own memory."""
    return kind.from_address(address)
