# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's page walk, changed in one place: page tables and code of an encrypted guest are private.

unicorn's excp_helper.c get_hphys() translates each guest physical address that a walk meets: of a table, and
then of what is accessed. `walk` in native.asm comes before its first instruction, and sets the C-bit of
tables and of code fetches in a guest whose nCR3 has PRIVATE_WALKS. A translation that is so for code alone
is none for data. Tables get a `prot` too: get_hphys() writes to it for a page that no code may be fetched
from, though a table's has none (later releases of QEMU look first).

get_hphys() has no name in the library. It lies before x86_cpu_tlb_fill(), begins with 17 bytes that may
execute anywhere, and is called nine times; where that is not so, the engine is not the one that we know.

Source: AMD64 Architecture Programmer's Manual volume 2 (24593), 15.34.5.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import re
import struct

from .binding import EngineUnavailable, not_as_it_was
from .layout import State, peek
from .native import code

#: Of nCR3, a bit that the engine does not look at.
PRIVATE_WALKS = 1

_RANGE = 0x1000
_CALLS = 9
#: push r15; eleven more bytes; sub rsp; then hflags2 is looked at for nested paging.
_BEGINNING = re.compile(rb"(\x41\x57.{11}\x48\x83\xec.)\xf6\x87(.{4})\x40\x75", re.DOTALL)
_CALL = b"\xe8"
_JUMP = bytes.fromhex("ff2500000000")  # to the address that follows
_MOVED = b"\x90" * 17
_READ, _WRITE, _EXECUTE = 1, 2, 4


@functools.cache
def change(fill: int, nested_cr3: int) -> None:
    """Once for the process, as the library is.

    :param fill: address of x86_cpu_tlb_fill().
    :param nested_cr3: offset in CPUX86State.
    :raise EngineUnavailable: get_hphys() was not found, or may not be changed.
    """
    before, after = peek(fill - _RANGE, _RANGE), peek(fill, _RANGE)
    found = list(_BEGINNING.finditer(before))
    places = [fill - _RANGE + match.start() for match in found]
    if len(places) != 1 or _calls(after, places[0] - fill) != _CALLS:
        raise EngineUnavailable(not_as_it_was("its page walk was not found"))
    moved, (hflags2,) = found[0][1], struct.unpack("<i", found[0][2])
    own = code()
    own.put("walk", _MOVED, moved)
    own.walk.back = places[0] + len(moved)
    own.walk.nested_cr3 = hflags2 - State._hflags2.offset + nested_cr3
    _overwrite(places[0], _JUMP + struct.pack("<Q", own.functions["walk"]))


def _calls(text: bytes, target: int) -> int:
    """How many calls go to `target`, both counted from the same place."""
    places = (match.end() for match in re.finditer(_CALL, text[:-4]))
    return sum(struct.unpack_from("<i", text, at)[0] + at + 4 == target for at in places)


def _overwrite(address: int, data: bytes) -> None:
    """Change the library's code, in this process."""
    start = address & -mmap.PAGESIZE
    size = address + len(data) - start
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(start, size, _READ | _WRITE | _EXECUTE):
        why = os.strerror(ctypes.get_errno())
        raise EngineUnavailable(
            f"guest code needs unicorn's code changed in memory, which this machine does not allow ({why}):"
            " allow it (execmod in SELinux), or start the model with :execute=N"
        )
    ctypes.memmove(address, data, len(data))
    protect(start, size, _READ | _EXECUTE)
