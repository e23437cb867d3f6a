# SPDX-License-Identifier: GPL-2.0-or-later
"""Where guest pages lie: our own pools, and files that the VMM maps shared."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from .engine import Engine
from .nested_paging import PAGE

_POOL_BASE = 0x10_0000_0000
_FILES_BASE = 0x30_0000_0000
_CHUNK = 0x100_0000
_ALIGNMENT = 0x4000_0000


class Place(NamedTuple):
    """A page of ours: `memory[offset:offset + 4096]` is what the engine sees at `physical`."""

    memory: mmap.mmap
    offset: int
    physical: int


class Addresses:
    """Physical addresses of the engine that are not in use yet."""

    def __init__(self) -> None:
        self._pool = _POOL_BASE
        self._files = _FILES_BASE

    def pool(self) -> int:
        """A chunk."""
        self._pool += _CHUNK
        return self._pool - _CHUNK

    def file(self, size: int) -> int:
        """Room for a file, aligned so that large pages can be used."""
        start = self._files
        self._files += -(-size // _ALIGNMENT) * _ALIGNMENT
        return start


class Pool:
    """Pages of anonymous memory, taken in order; `chunks` with the number of pages used of each."""

    def __init__(self, engine: Engine, addresses: Addresses) -> None:
        self._engine = engine
        self._addresses = addresses
        self._free: list[Place] = []
        self.chunks: list[tuple[mmap.mmap, int]] = []
        self.used = 0

    def take(self) -> Place:
        """A page; what is in it is whatever was."""
        if self._free:
            return self._free.pop()
        chunk, index = divmod(self.used * PAGE, _CHUNK)
        if chunk == len(self.chunks):
            memory, physical = mmap.mmap(-1, _CHUNK), self._addresses.pool()
            self._engine.map(physical, memory)
            self.chunks.append((memory, physical))
        self.used += 1
        memory, physical = self.chunks[chunk]
        return Place(memory, index, physical + index)

    def give_back(self, place: Place) -> None:
        """The page is not in use any more, and no code of it is known."""
        self._free.append(place)


class SharedFiles:
    """Files that a process maps MAP_SHARED: guest memory that we can map as well."""

    def __init__(self, engine: Engine, addresses: Addresses, process: int) -> None:
        self._engine = engine
        self._addresses = addresses
        self._process = process
        self._mapped: dict[tuple[int, int], tuple[mmap.mmap, int]] = {}

    def find(self, address: int, size: int) -> tuple[mmap.mmap, int, int] | None:
        """(memory, offset, physical address) of `address` in the VMM; None if it is not such a file's."""
        try:
            with open(f"/proc/{self._process}/maps", encoding="utf-8", errors="replace") as file:
                line = next((line for line in file if address in _span(line)), None)
        except OSError:
            return None
        if line is None:
            return None
        _, permissions, offset, device, inode, *_ = line.split(None, 5)
        span = _span(line)
        if address + size > span.stop or permissions[3] != "s" or inode == "0":
            return None
        major, minor = (int(word, 16) for word in device.split(":"))
        found = self._map((os.makedev(major, minor), int(inode)))
        at = address - span.start + int(offset, 16)
        return (found[0], at, found[1] + at) if found else None

    def _map(self, identity: tuple[int, int]) -> tuple[mmap.mmap, int] | None:
        if identity not in self._mapped:
            descriptor = self._open(identity)
            if descriptor is None:
                return None
            try:
                memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            physical = self._addresses.file(len(memory))
            self._engine.map(physical, memory)
            self._mapped[identity] = memory, physical
        return self._mapped[identity]

    def _open(self, identity: tuple[int, int]) -> int | None:
        directory = f"/proc/{self._process}/fd"
        try:
            for name in os.listdir(directory):
                status = os.stat(f"{directory}/{name}")
                if (status.st_dev, status.st_ino) == identity and status.st_size:
                    return os.open(f"{directory}/{name}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        return None


def _span(line: str) -> range:
    """The addresses of a line of /proc/PID/maps."""
    start, end = line[: line.index(" ")].split("-")
    return range(int(start, 16), int(end, 16))
