# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as the CPU and its memory controller have it, beside the VMM's own view of it.

A page is either *private*, last used with the C-bit: its plaintext is in a pool of ours and the VMM's memory
holds ciphertext; or *shared*: the VMM's memory is the truth. Use through the other view converts it by way of
the ciphertext, as the hardware does. Shared pages whose memory we cannot map are copies: changes of the guest
are carried over before the VMM continues, changes of the VMM before the guest continues.

Sources: AMD64 Architecture Programmer's Manual volume 2 (24593), 15.34 (SEV); KVM's memory slots.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from .. import encryption
from ..memory import Refusal, TargetMemory
from .backing import Addresses, Place, Pool, SharedFiles
from .engine import Engine
from .nested_paging import LARGE_PAGE, PAGE, NestedPaging
from .pages import Page, Run, differences, pieces, runs_of

_IN_PAGE = PAGE - 1
_CIPHERTEXT_AT_ONCE = 64


class NotMemory(Exception):
    """No slot is at this guest physical address."""


class Slot(NamedTuple):
    """A memory slot: `address` is the VMM's."""

    gpa: int
    size: int
    address: int
    readonly: bool


class GuestMemory:
    """The memory of one VM.

    :ivar generation: changes when a page that was handed out is not what it was.
    :param key: the guest's memory encryption key; None without SEV.
    """

    def __init__(self, engine: Engine, target: TargetMemory, process: int, key: bytes | None) -> None:
        self.paging = NestedPaging(engine, encrypted=key is not None)
        self._engine = engine
        self._target = target
        self._key = key
        self._mark_key = os.urandom(encryption.KEY_SIZE)
        addresses = Addresses()
        self._pool = Pool(engine, addresses)
        self._files = SharedFiles(engine, addresses, process)
        self._slots: list[Slot] = []
        self.generation = 0
        self._direct: dict[Slot, tuple[mmap.mmap, int, int] | None] = {}
        self._pages: dict[int, Page] = {}
        self._copies: dict[int, Page] = {}
        self._changed: dict[int, Page] = {}
        self._runs: list[Run] | None = None
        self._written: dict[int, Page] = {}

    @property
    def encrypted(self) -> bool:
        """Whether the C-bit means anything."""
        return self._key is not None

    # Slots

    def set_slots(self, slots: list[Slot]) -> None:
        """Replace the slots; pages of those that stay keep their content."""
        gone, come = set(self._slots) - set(slots), set(slots) - set(self._slots)
        self.push()
        for slot in gone:
            for page in self._pages_in(slot):
                self._drop(page)
        self._slots = slots
        self.generation += 1
        kept = {slot: place for slot, place in self._direct.items() if slot not in gone}
        self._direct = {**kept, **{slot: self._find_file(slot) for slot in come}}
        for slot in gone | come:  # where one comes, what is not memory may be mapped
            self.paging.unmap(slot.gpa, slot.size)
        self._engine.flush_tlb()

    def _pages_in(self, slot: Slot) -> list[Page]:
        if slot.size // PAGE > len(self._pages):
            return [page for page in self._pages.values() if slot.gpa <= page.gpa < slot.gpa + slot.size]
        places = range(slot.gpa, slot.gpa + slot.size, PAGE)
        return [page for page in map(self._pages.get, places) if page is not None]

    def _find_file(self, slot: Slot) -> tuple[mmap.mmap, int, int] | None:
        return self._files.find(slot.address, slot.size)

    def slot(self, gpa: int) -> Slot | None:
        """The slot at an address."""
        for slot in self._slots:
            if slot.gpa <= gpa < slot.gpa + slot.size:
                return slot
        return None

    # Faults and accesses

    def fault(self, gpa: int, *, write: bool, private: bool, fetch: bool = False) -> bool:
        """Make an access possible; False if it is no access to memory."""
        slot = self.slot(gpa)
        if slot is None or (slot.readonly and write):
            return False
        if self._key is None and self._map_large(slot, gpa, write):
            return True
        page = self._page(gpa & -PAGE, slot, private and self.encrypted)
        if page.private and write:
            self._will_write(page)
        if page.twin is not None and write:
            self._changed[page.gpa] = page
        if fetch and not page.executable:
            self._make_executable(page)
        self._map(page.private, page, page.written if page.private else self._as_it_may(page))
        return True

    def _as_it_may(self, page: Page) -> bool:
        return not page.readonly and (page.twin is None or page.gpa in self._changed)

    def _map(self, private: bool, page: Page, writable: bool) -> None:
        place = page.place.physical
        self.paging.map(private, page.gpa, place, writable=writable, executable=page.executable)

    def _make_executable(self, page: Page) -> None:
        page.executable = True
        self.paging.unmap(page.gpa, PAGE)
        self._engine.flush_tlb()

    def read(self, gpa: int, size: int, private: bool) -> bytes:
        """What the CPU reads.

        :raise NotMemory: no slot.
        """
        return b"".join(self.page(at, private).read(at, length) for at, length in pieces(gpa, size))

    def write(self, gpa: int, data: bytes, private: bool) -> None:
        """What the CPU writes.

        :raise NotMemory: no slot, or one that is read-only.
        """
        done = 0
        for at, length in pieces(gpa, len(data)):
            self.store(self.page(at, private), at, data[done : done + length])
            done += length

    def store(self, page: Page, gpa: int, data: bytes) -> None:
        """What the CPU writes within a page.

        :raise NotMemory: it is read-only.
        """
        if page.readonly:
            raise NotMemory(hex(gpa))
        if page.private:
            self._will_write(page)
        elif page.twin is not None:
            self._changed[page.gpa] = page
        memory, offset, physical = page.place
        start = gpa & _IN_PAGE
        memory[offset + start : offset + start + len(data)] = data
        if page.executable:
            self._engine.forget_code(physical + start, len(data))

    def host_read(self, gpa: int, size: int) -> bytes:
        """What the host reads: ciphertext of a private page."""
        if gpa & _IN_PAGE <= PAGE - size:
            return self._host_read(gpa, size)
        return b"".join(self._host_read(at, length) for at, length in pieces(gpa, size))

    def _host_read(self, gpa: int, size: int) -> bytes:
        page = self._pages.get(gpa & -PAGE)
        if page is None or not page.private:
            return self.page(gpa, False).read(gpa, size)
        self._bring_up_to_date([page])
        return self._target.read(page.host + gpa % PAGE, size)

    def host_write(self, gpa: int, data: bytes) -> None:
        """What the host writes: into a private page, ciphertext that decrypts to whatever it does."""
        known = self._pages.get(gpa & -PAGE)
        if known is not None and not known.private and gpa & _IN_PAGE <= PAGE - len(data):
            self.store(known, gpa, data)
            return
        done = 0
        for at, length in pieces(gpa, len(data)):
            page = self._pages.get(at & -PAGE)
            if page is not None and page.private:
                self._drop(page)
                self._engine.flush_tlb()
            self.write(at, data[done : done + length], False)
            done += length

    def page(self, gpa: int, private: bool) -> Page:
        """The page at an address, on the side that is asked for.

        :raise NotMemory: no slot.
        """
        page = self._pages.get(gpa & -PAGE)
        if page is not None and page.private == (private and self._key is not None):
            return page
        slot = self.slot(gpa)
        if slot is None:
            raise NotMemory(hex(gpa))
        return self._page(gpa & -PAGE, slot, private and self.encrypted)

    # Pages

    def _map_large(self, slot: Slot, gpa: int, write: bool) -> bool:
        direct = self._direct[slot]
        if direct is None:
            return False
        start = gpa & -LARGE_PAGE
        physical = direct[2] + start - slot.gpa
        inside = slot.gpa <= start and start + LARGE_PAGE <= slot.gpa + slot.size
        if not inside or physical % LARGE_PAGE:
            return False
        self.paging.map(
            False, start, physical, writable=write or not slot.readonly, executable=True, large=True
        )
        return True

    def _page(self, gpa: int, slot: Slot, private: bool) -> Page:
        page = self._pages.get(gpa)
        if page is not None and page.private != private:
            self._drop(page)
            self._engine.flush_tlb()
            page = None
        if page is None:
            page = self._load(gpa, slot, private)
            self._pages[gpa] = page
        return page

    def _load(self, gpa: int, slot: Slot, private: bool) -> Page:
        host = slot.address + gpa - slot.gpa
        direct = self._direct[slot]
        if direct is not None and not private:
            memory, offset, physical = direct
            at = gpa - slot.gpa
            return Page(gpa, host, Place(memory, offset + at, physical + at), False, slot.readonly)
        data = self._host_pages(host, PAGE)
        if private:
            data = encryption.decrypt(self._key or b"", host, data)
        place = self._pool.take()
        place.memory[place.offset : place.offset + PAGE] = data
        page = Page(gpa, host, place, private, slot.readonly)
        if not private:
            page.twin = data
            if not slot.readonly:  # a ROM stays what it is while its slot is there
                self._copies[gpa] = page
                self._runs = None
        return page

    def _host_pages(self, host: int, size: int) -> bytes:
        try:
            return self._target.read(host, size)
        except Refusal:
            return bytes(size)  # the VMM has unmapped its own guest's memory

    def _drop(self, page: Page) -> None:
        """Leave the VMM's memory as the only truth; the caller flushes."""
        if page.private:
            self._make_ciphertext(page)
        elif page.twin is not None:
            self._push(page)
            self._copies.pop(page.gpa, None)
            self._changed.pop(page.gpa, None)
            self._runs = None
        del self._pages[page.gpa]
        self.generation += 1
        self.paging.unmap(page.gpa, PAGE)
        if page.private or page.twin is not None:
            if page.executable:
                self._engine.forget_code(page.place.physical, PAGE)
            self._pool.give_back(page.place)

    # Ciphertext

    def _will_write(self, page: Page) -> None:
        if page.written:
            return
        page.written = True
        self._written[page.gpa] = page
        self._to_host(page.host, self._mark(page))

    def _mark(self, page: Page) -> bytes:
        """What stands for ciphertext that is not made yet, and that no device writes by chance."""
        return encryption.encrypt(self._mark_key, page.host, bytes(PAGE))

    def _make_ciphertext(self, page: Page) -> bool:
        """Bring the VMM's view up to date; whether the VMM has written there meanwhile.

        Its devices do that once the page is to be shared, and nothing else tells of it: what they wrote
        stays.
        """
        if not page.written:
            return False
        page.written = False
        self._written.pop(page.gpa, None)
        data = page.place.memory[page.place.offset : page.place.offset + PAGE]
        ciphertext = encryption.encrypt(self._key or b"", page.host, data)
        mark, now = self._mark(page), self._host_pages(page.host, PAGE)
        if now == mark:
            self._to_host(page.host, ciphertext)
            return False
        for at in range(0, PAGE, encryption.BLOCK_SIZE):
            end = at + encryption.BLOCK_SIZE
            if now[at:end] == mark[at:end]:
                self._to_host(page.host + at, ciphertext[at:end])
        return True

    def make_ciphertext(self, limit: int = _CIPHERTEXT_AT_ONCE) -> None:
        """Bring the VMM's view of pages that the guest wrote up to date, the oldest first."""
        self._bring_up_to_date(list(self._written.values())[:limit])

    def _bring_up_to_date(self, pages: list[Page]) -> None:
        for page in pages:
            if self._make_ciphertext(page):
                self._drop(page)
            else:
                self._map(True, page, False)
        if pages:
            self._engine.flush_tlb()

    # Copies

    def push(self) -> None:
        """Carry the guest's changes of copied pages over to the VMM."""
        for page in self._changed.values():
            self._push(page)

    def _push(self, page: Page) -> None:
        start = page.place.offset
        data = page.place.memory[start : start + PAGE]
        twin = page.twin
        if twin is None or data == twin or page.readonly:
            return
        for begin, end in differences(twin, data):
            self._to_host(page.host + begin, data[begin:end])
        page.twin = data
        if self._runs is not None and page.run is not None:
            page.run.twin[page.index * PAGE : (page.index + 1) * PAGE] = data

    def pull(self) -> None:
        """Take the VMM's changes of copied pages over."""
        if self._runs is None:
            self._runs = runs_of(list(self._copies.values()))
        for run in self._runs:
            data = self._host_pages(run.pages[0].host, len(run.twin))
            if data != run.twin:
                self._take_over(run, data)

    def _take_over(self, run: Run, data: bytes) -> None:
        for index, page in enumerate(run.pages):
            now = data[index * PAGE : (index + 1) * PAGE]
            if now != page.twin:
                start = page.place.offset
                page.place.memory[start : start + PAGE] = now
                page.twin = now
                if page.executable:
                    self._engine.forget_code(page.place.physical, PAGE)
        run.twin[:] = data

    def _to_host(self, address: int, data: bytes) -> None:
        try:
            self._target.write(address, data)
        except Refusal:
            return  # the VMM has unmapped its own guest's memory
