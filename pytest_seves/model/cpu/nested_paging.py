# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested page tables: two trees over the same guest physical addresses, without and with the C-bit.

The engine takes page-table bits from 40 on for reserved, so its C-bit is 39, the second entry of the root.
"""

from __future__ import annotations

from .engine import PRIVATE_BASE, PRIVATE_SIZE, TABLES, Engine
from .native import C_BIT as C_BIT
from .walks import PRIVATE_WALKS

C_BIT_MASK = 1 << C_BIT
PAGE = 0x1000
LARGE_PAGE = 0x20_0000

_NO_EXECUTE = 1 << 63
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1, 2, 4, 0x20, 0x40, 0x80
_TABLE = _PRESENT | _WRITABLE | _USER
_LEAF = _PRESENT | _USER | _ACCESSED | _DIRTY
_ENTRY_ADDRESS = 0x000F_FFFF_FFFF_F000
_END = PRIVATE_BASE + PRIVATE_SIZE


class NestedPaging:
    """The trees.

    :ivar nested_cr3: the root, and whether page tables and code are private.
    """

    root = TABLES

    def __init__(self, engine: Engine, *, encrypted: bool) -> None:
        self._engine = engine
        self.nested_cr3 = self.root | (PRIVATE_WALKS if encrypted else 0)
        self._trees = (TABLES + PAGE, TABLES + 2 * PAGE)
        self._next = 0
        self._all_private = False
        self.clear()

    def clear(self) -> None:
        """Map nothing."""
        for table in (self.root, *self._trees):
            self._engine.write_table(table, *([0] * 512))
        self._next = TABLES + 3 * PAGE
        self._engine.write_table(self.root + 8, self._trees[1] | _TABLE)
        self._select()
        self._engine.flush_tlb()

    def select(self, all_private: bool) -> None:
        """Whether addresses without the C-bit are private too, as they are with paging off."""
        if all_private != self._all_private:
            self._all_private = all_private
            self._select()
            self._engine.flush_tlb()

    def _select(self) -> None:
        self._engine.write_table(self.root, self._trees[self._all_private] | _TABLE)

    def map(
        self,
        private: bool,
        gpa: int,
        physical: int,
        *,
        writable: bool,
        executable: bool,
        large: bool = False,
    ) -> None:
        """Map one page in one of the trees.

        The engine looks for code at each write to a page that is executable, which makes them slow.
        """
        entry = physical | _LEAF | (_WRITABLE if writable else 0) | (_LARGE if large else 0)
        entry |= 0 if executable else _NO_EXECUTE
        place = self._place(private, gpa, large)
        if place is None:
            self.clear()
            place = self._place(private, gpa, large)
        assert place is not None
        self._engine.write_table(place, entry)

    def unmap(self, gpa: int, size: int) -> None:
        """Take whole pages out of both trees, and large ones that they are a part of; the caller flushes."""
        for start in range(gpa & -LARGE_PAGE, gpa + size, LARGE_PAGE):
            first, last = max(gpa, start), min(gpa + size, start + LARGE_PAGE)
            for tree in self._trees:
                upper = self._engine.read_table(tree + (start >> 30 & 511) * 8)
                if not upper:
                    continue
                place = (upper & _ENTRY_ADDRESS) + (start >> 21 & 511) * 8
                entry = self._engine.read_table(place)
                if entry & _LARGE:
                    self._engine.write_table(place, 0)
                elif entry:
                    at = (entry & _ENTRY_ADDRESS) + (first >> 12 & 511) * 8
                    self._engine.write_table(at, *([0] * (last - first >> 12)))

    def _place(self, private: bool, gpa: int, large: bool) -> int | None:
        """Address of the leaf's entry, tables made where missing; None when there is no room for them."""
        table = self._trees[private]
        for shift in (30,) if large else (30, 21):
            place = table + (gpa >> shift & 511) * 8
            entry = self._engine.read_table(place)
            if not entry or entry & _LARGE:
                if self._next >= _END:
                    return None
                self._engine.write_table(self._next, *([0] * 512))
                entry, self._next = self._next | _TABLE, self._next + PAGE
                self._engine.write_table(place, entry)
            table = entry & _ENTRY_ADDRESS
        return table + (gpa >> (21 if large else 12) & 511) * 8
