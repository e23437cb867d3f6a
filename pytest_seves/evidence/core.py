# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM dumped of its guest: an ELF core (System V ABI; QEMU docs/interop/qmp, dump-guest-memory)."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16x HHI QQQ I HHHHHH")
_SEGMENT = struct.Struct("<II QQQQQQ")
_PT_NOTE = 4


def parts(core: bytes) -> tuple[bytes, bytes]:
    """(notes, the rest): registers of vCPUs stand in the notes, memory in the rest.

    What is no 64-bit core, or no whole one, is all rest.
    """
    notes = [core[start:end] for start, end in _notes(core)]
    rest = bytearray(core)
    for start, end in _notes(core):
        rest[start:end] = bytes(end - start)
    return b"".join(notes), bytes(rest)


def _notes(core: bytes) -> list[tuple[int, int]]:
    if core[:5] != b"\x7fELF\x02" or len(core) < _HEADER.size:
        return []
    fields = _HEADER.unpack_from(core)
    table, size, count = fields[4], fields[8], fields[9]
    if size != _SEGMENT.size or table + size * count > len(core):
        return []
    found = []
    for index in range(count):
        kind, _, offset, _, _, length, *_ = _SEGMENT.unpack_from(core, table + size * index)
        if kind == _PT_NOTE:
            found.append((offset, min(offset + length, len(core))))
    return [(start, end) for start, end in found if start <= end]
