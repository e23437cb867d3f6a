# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory by linear address: the page walk that instruction emulation and event delivery need.

Source: AMD64 Architecture Programmer's Manual volume 2 (24593), chapter 5; 15.34.5 for the C-bit: page tables
and code are private whatever it says.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

from .engine import Engine
from .guest_memory import GuestMemory, NotMemory
from .layout import EFER_LMA
from .nested_paging import C_BIT_MASK, PAGE
from .pages import Page

CR0_PG = 1 << 31
CR0_WP = 1 << 16
CR4_PAE = 1 << 5
_CR4_PSE = 1 << 4
_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_ADDRESS = 0x000F_FFFF_FFFF_F000
_IN_PAGE = PAGE - 1
_WALKS = 1024


class PageFault(Exception):
    """A linear address that is not mapped for this access."""

    def __init__(self, address: int, error: int) -> None:
        super().__init__(f"{address:#x}")
        self.address = address
        self.error = error


class _Walk(NamedTuple):
    """A page that was found; it is still there while the entries on the way are what they were."""

    generation: int
    entries: list[tuple[mmap.mmap, slice, bytes]]
    page: Page


class VirtualMemory:
    """The current vCPU's address space."""

    def __init__(self, engine: Engine, memory: GuestMemory) -> None:
        self._state = engine.state
        self._memory = memory
        self._walks: dict[tuple[int, int, int, bool], _Walk] = {}
        self._way: list[tuple[mmap.mmap, slice, bytes]] = []
        self._control = engine.state.cr

    @property
    def has_c_bit(self) -> bool:
        """Whether page tables can hold one: without, every access is private."""
        return bool(self._state.cr[0] & CR0_PG and self._state.cr[4] & CR4_PAE)

    def translate(self, address: int, *, write: bool = False) -> tuple[int, bool]:
        """(guest physical address, private).

        :raise PageFault: not present, or not writable.
        """
        state = self._state
        if not state.cr[0] & CR0_PG:
            return address & 0xFFFFFFFF, True
        error = (2 if write else 0) | (4 if state.hflags & 3 == 3 else 0)
        encrypted = self._memory.encrypted
        wide = bool(state.cr[4] & CR4_PAE)
        shifts: tuple[int, ...]
        if state.efer & EFER_LMA:
            table, shifts = state.cr[3] & _ADDRESS, (39, 30, 21, 12)
        elif wide:
            table, shifts = state.cr[3] & 0xFFFFFFE0, (30, 21, 12)
        else:
            table, shifts = state.cr[3] & 0xFFFFF000, (22, 12)
        self._way, entry = [], 0
        for shift in shifts:
            size, bits = (8, 511) if wide else (4, 1023)
            index = address >> shift & (3 if shift == 30 and len(shifts) == 3 else bits)
            place = (table & ~C_BIT_MASK if encrypted else table) + index * size
            page = self._memory.page(place, True)
            start = page.place.offset + (place & _IN_PAGE)
            where = slice(start, start + size)
            raw = page.place.memory[where]
            self._way.append((page.place.memory, where, raw))
            entry = int.from_bytes(raw, "little")
            if not entry & _PRESENT:
                raise PageFault(address, error)
            top = shift == 30 and len(shifts) == 3
            if write and not top and not entry & _WRITABLE and state.cr[0] & CR0_WP:
                raise PageFault(address, error | 1)
            table = entry & _ADDRESS
            if shift in (30, 22, 21) and entry & _LARGE and not top and self._large(shift):
                table &= -(1 << shift)
                break
        offset = address & ((1 << shift) - 1)
        gpa = (table & ~C_BIT_MASK if encrypted else table) | offset
        return gpa, bool(entry & C_BIT_MASK) if encrypted and wide else True

    def _large(self, shift: int) -> bool:
        return shift != 22 or bool(self._state.cr[4] & _CR4_PSE)

    def _page(self, address: int, write: bool, code: bool = False) -> Page:
        """The page that an access of 64-bit code reaches, by the last walk if that still holds."""
        state, memory, registers = self._state, self._memory, self._control
        control = registers[0] & CR0_WP | state.efer & EFER_LMA
        key = (address >> 12, registers[3], control | code, write)
        walk = self._walks.get(key)
        if walk is not None and walk.generation == memory.generation:
            for table, where, raw in walk.entries:
                if table[where] != raw:
                    break
            else:
                return walk.page
        page = self._reach(address, write, code)
        if control & EFER_LMA:
            if len(self._walks) >= _WALKS:
                self._walks.clear()
            self._walks[key] = _Walk(memory.generation, self._way, page)
        return page

    def _reach(self, address: int, write: bool, code: bool) -> Page:
        gpa, private = self.translate(address, write=write)
        try:
            return self._memory.page(gpa, private or code)
        except NotMemory:
            raise PageFault(address, 2 if write else 0) from None

    def read(self, address: int, size: int, *, code: bool = False) -> bytes:
        """Bytes at a linear address, of data or as they are fetched.

        :raise PageFault: it is not mapped, or not to memory.
        """
        if address & _IN_PAGE <= PAGE - size:
            return self._page(address & self._mask, False, code).read(address, size)
        pieces = self._pieces(address, size)
        return b"".join(self._page(at, False, code).read(at, length) for at, length in pieces)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes at a linear address; nothing if not all of it can be written.

        :raise PageFault: it is not mapped writable, or not to memory.
        """
        if address & _IN_PAGE <= PAGE - len(data):
            places = [(self._page(address & self._mask, True), address & self._mask, len(data))]
        else:
            places = [(self._page(at, True), at, length) for at, length in self._pieces(address, len(data))]
        done = 0
        for page, at, length in places:
            try:
                self._memory.store(page, at, data[done : done + length])
            except NotMemory:
                raise PageFault(at, 2) from None
            done += length

    def read_number(self, address: int, size: int) -> int:
        """A little-endian number."""
        return int.from_bytes(self.read(address, size), "little")

    @property
    def _mask(self) -> int:
        return (1 << 64) - 1 if self._state.efer & EFER_LMA else 0xFFFFFFFF

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        mask = self._mask
        while size > 0:
            length = min(size, PAGE - address % PAGE)
            yield address & mask, length
            address, size = address + length, size - length
