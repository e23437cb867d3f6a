# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of a guest's memory, taken apart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.evidence.core import parts


def core(notes: bytes, memory: bytes, **wrong: int) -> bytes:
    """An ELF core of two segments, as QEMU writes it; `wrong` replaces fields of the header."""
    start = 64 + 2 * 56
    fields = {"phoff": 64, "phentsize": 56, "phnum": 2, **wrong}
    rest = (fields["phoff"], 0, 0, 64, fields["phentsize"], fields["phnum"], 0, 0, 0)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, *rest)
    note = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(notes), len(notes), 0)
    load = struct.pack("<IIQQQQQQ", 1, 0, start + len(notes), 0, 0, len(memory), len(memory), 0)
    return header + note + load + notes + memory


def test_registers_and_memory_are_told_apart() -> None:
    """Notes hold no memory, the rest holds no note."""
    notes, rest = parts(core(b"N" * 40, b"M" * 4096))
    assert notes == b"N" * 40
    assert rest.endswith(bytes(40) + b"M" * 4096)


@pytest.mark.parametrize("wrong", [{"phoff": 1 << 60}, {"phentsize": 32}, {"phnum": 0xFFFF}])
def test_a_core_that_is_none_is_all_memory(wrong: dict[str, int]) -> None:
    """Nothing of it is left unseen."""
    raw = core(b"N" * 40, b"M" * 4096, **wrong)
    assert parts(raw) == (b"", raw)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_dump_is_a_crash(tail: bytes, cut: int) -> None:
    """Whatever a VMM wrote, each byte is in one of the parts."""
    raw = core(b"N" * 40, tail)[:cut]
    notes, rest = parts(raw)
    assert len(rest) == len(raw)
    assert rest.count(b"N") + notes.count(b"N") == raw.count(b"N")
