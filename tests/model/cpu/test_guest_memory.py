# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory between the engine and the VMM: copies, mapped files, ciphertext."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_seves.model import encryption
from pytest_seves.model.cpu.engine import Engine
from pytest_seves.model.cpu.guest_memory import GuestMemory, NotMemory, Slot
from pytest_seves.model.memory import Refusal

BASE = 0x7000_0000
SIZE = 0x10000
KEY = bytes(range(32))


class Vmm:
    """A VMM's memory at BASE, with what was written to it."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.writes: list[tuple[int, bytes]] = []

    def read(self, address: int, size: int) -> bytes:
        """As TargetMemory.read()."""
        if not BASE <= address <= BASE + SIZE - size:
            raise Refusal(14)
        return bytes(self.memory[address - BASE : address - BASE + size])

    def write(self, address: int, data: bytes) -> None:
        """As TargetMemory.write()."""
        if not BASE <= address <= BASE + SIZE - len(data):
            raise Refusal(14)
        self.writes.append((address - BASE, data))
        self.memory[address - BASE : address - BASE + len(data)] = data


def memory(vmm: Any, key: bytes | None, readonly: bool = False) -> GuestMemory:
    """Guest memory with one slot."""
    out = GuestMemory(Engine(), vmm, os.getpid(), key)
    out.set_slots([Slot(0, SIZE, BASE, readonly)])
    return out


def test_no_slot_is_no_memory() -> None:
    """Reads and writes beyond it are refused, faults are not for memory."""
    guest = memory(Vmm(), None)
    with pytest.raises(NotMemory):
        guest.read(SIZE - 4, 8, False)
    assert not guest.fault(SIZE, write=False, private=False)


def test_read_only_slot_takes_no_write() -> None:
    """A ROM: a write is an access that the VMM has to complete."""
    guest = memory(Vmm(), None, readonly=True)
    assert guest.fault(0, write=False, private=False)
    assert not guest.fault(0, write=True, private=False)
    with pytest.raises(NotMemory):
        guest.write(0, b"x", False)


def test_only_changed_words_go_to_the_vmm() -> None:
    """What the VMM wrote beside them meanwhile is kept, and comes over."""
    vmm = Vmm()
    guest = memory(vmm, None)
    guest.write(0x1008, b"guest", False)
    vmm.memory[0x1010:0x1014] = b"host"
    guest.push()
    assert vmm.writes == [(0x1008, b"guest\0\0\0")]
    guest.pull()
    assert guest.read(0x1008, 12, False) == b"guest\0\0\0host"
    guest.push()
    assert len(vmm.writes) == 1


def test_private_page_is_ciphertext_once_it_was_made() -> None:
    """AES-XTS by the VMM's address; decrypted again when it is loaded anew."""
    vmm = Vmm()
    guest = memory(vmm, KEY)
    guest.write(0x2000, b"secret", True)
    assert b"secret" not in vmm.memory
    guest.make_ciphertext()
    page = bytes(vmm.memory[0x2000:0x3000])
    assert encryption.decrypt(KEY, BASE + 0x2000, page).startswith(b"secret")
    guest.set_slots([])
    guest.set_slots([Slot(0x100000, SIZE, BASE, False)])
    assert guest.read(0x102000, 6, True) == b"secret"


def test_page_changes_sides_by_way_of_its_ciphertext() -> None:
    """Read without the C-bit it is what the VMM has; written so, it decrypts to something else."""
    vmm = Vmm()
    guest = memory(vmm, KEY)
    guest.write(0x2000, b"secret", True)
    seen = guest.read(0x2000, 16, False)
    assert seen == bytes(vmm.memory[0x2000:0x2010])
    assert guest.read(0x2000, 6, True) == b"secret"
    guest.write(0x2000, b"plain text here.", False)
    assert guest.read(0x2000, 16, True) != b"plain text here."
    assert guest.read(0x2000, 16, False) == b"plain text here."


def test_blocks_that_the_vmm_has_written_are_its_own() -> None:
    """The others of the page get their ciphertext, and what the guest writes later is not lost."""
    vmm = Vmm()
    guest = memory(vmm, KEY)
    guest.write(0x2000, b"guest's own data" * 3, True)
    vmm.memory[0x2010:0x2014] = b"host"
    guest.make_ciphertext()
    assert vmm.memory[0x2010:0x2014] == b"host"
    assert guest.read(0x2000, 16, True) == guest.read(0x2020, 16, True) == b"guest's own data"
    assert guest.read(0x2010, 16, True) != b"guest's own data"
    guest.write(0x2010, b"as it was before", True)
    guest.make_ciphertext()
    assert guest.read(0x2010, 4, False) == vmm.memory[0x2010:0x2014] != b"host"
    assert guest.read(0x2000, 48, True) == b"guest's own dataas it was beforeguest's own data"


def test_host_sees_ciphertext_of_a_private_page() -> None:
    """KVM's own view of a GHCB that the guest forgot to share."""
    guest = memory(Vmm(), KEY)
    guest.write(0x3000, bytes(16), True)
    assert guest.host_read(0x3000, 16) != bytes(16)
    guest.host_write(0x3000, b"by the host.....")
    assert guest.read(0x3000, 16, True) != bytes(16)
    assert guest.host_read(0x3000, 16) == guest.read(0x3000, 16, False)


def test_vmm_that_unmaps_its_guest_does_no_harm() -> None:
    """The kernel would fault; here the page reads as zeros and writes are lost."""
    guest = GuestMemory(Engine(), Vmm(), os.getpid(), None)  # type: ignore[arg-type]
    guest.set_slots([Slot(0, 0x1000, 0x1000, False)])
    assert guest.read(0, 4, False) == bytes(4)
    guest.write(0, b"lost", False)
    guest.push()


@pytest.fixture
def shared_file() -> Iterator[tuple[mmap.mmap, int]]:
    """4 MiB of ours in a memfd, and where they are mapped."""
    import ctypes

    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 0x400000)
    mapped = mmap.mmap(descriptor, 0x400000)
    anchor = ctypes.c_char.from_buffer(mapped)
    yield mapped, ctypes.addressof(anchor)
    del anchor
    mapped.close()
    os.close(descriptor)


def test_shared_file_is_mapped_and_not_copied(shared_file: tuple[mmap.mmap, int]) -> None:
    """Both sides see each other at once."""
    mapped, address = shared_file
    guest = GuestMemory(Engine(), Vmm(), os.getpid(), None)  # type: ignore[arg-type]
    guest.set_slots([Slot(0, 0x400000, address, False)])
    guest.write(0x1234, b"guest", False)
    assert mapped[0x1234:0x1239] == b"guest"
    mapped[0x5000:0x5004] = b"host"
    assert guest.read(0x5000, 4, False) == b"host"
    assert guest.fault(0x200000, write=True, private=False)
