# SPDX-License-Identifier: GPL-2.0-or-later
"""Intercepted instructions of which the operands must be found: moves to and from control registers.

Source: AMD64 Architecture Programmer's Manual volume 3 (24594), MOV CRn, LMSW and CLTS; volume 2, 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

_PREFIXES = frozenset({0x66, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65})


class ControlAccess(NamedTuple):
    """`kind`: "read", "write", "lmsw" or "clts"; `register` is the general one."""

    kind: str
    control: int
    register: int
    length: int


def control_access(code: bytes, *, long_mode: bool) -> ControlAccess | None:
    """Decode; None for what is none of these, or LMSW from memory."""
    at, rex, lock = 0, 0, False
    while at < len(code) and (code[at] in _PREFIXES or (long_mode and code[at] & 0xF0 == 0x40)):
        if long_mode and code[at] & 0xF0 == 0x40:
            rex = code[at]
        lock = lock or code[at] == 0xF0
        at += 1
    opcode, rest = code[at : at + 2], code[at + 2 :]
    if opcode == b"\x0f\x06":
        return ControlAccess("clts", 0, 0, at + 2)
    if not rest:
        return None
    modrm = rest[0]
    register = modrm & 7 | (rex & 1) << 3
    control = modrm >> 3 & 7 | (8 if rex & 4 or lock else 0)
    if opcode == b"\x0f\x22":
        return ControlAccess("write", control, register, at + 3)
    if opcode == b"\x0f\x20":
        return ControlAccess("read", control, register, at + 3)
    if opcode == b"\x0f\x01" and modrm & 0xF8 == 0xF0:
        return ControlAccess("lmsw", 0, register, at + 3)
    return None
