# SPDX-License-Identifier: GPL-2.0-or-later
"""cpio archives of the "newc" format, as a kernel unpacks them into its initramfs. Pure; no root needed.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. No date, owner or inode number of
this machine goes in: the same entries give the same bytes. The one library for it in Python was last
released in 2011.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_END = "TRAILER!!!"
_ALIGN = 4
_BLOCK = 512
_LARGEST = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A file, a directory or a device node.

    :param name: without a leading slash; its directory comes before it.
    :param mode: type and permissions, as ``st_mode``.
    :param device: major and minor number of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith("/") or "\0" in self.name or self.name == _END:
            raise ValueError(f"cpio: wanted a relative name, got {self.name!r}")
        if self.data and not stat.S_ISREG(self.mode):
            raise ValueError(f"cpio: {self.name}: only a regular file has content")
        if len(self.data) > _LARGEST:
            raise ValueError(f"cpio: {self.name}: wanted at most 4 GiB, got {len(self.data)} bytes")


def directory(name: str) -> Entry:
    """A directory that everybody may enter."""
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, data: bytes) -> Entry:
    """A file that can be executed."""
    return Entry(name, stat.S_IFREG | 0o755, data)


def character_device(name: str, major: int, minor: int) -> Entry:
    """A node of a character device."""
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive, with its trailer, in whole blocks of 512 bytes."""
    parts = [_record(entry.name, number, entry) for number, entry in enumerate(entries, 1)]
    whole = b"".join([*parts, _record(_END, 0, None)])
    return whole + bytes(-len(whole) % _BLOCK)


def _record(name: str, inode: int, entry: Entry | None) -> bytes:
    raw = name.encode() + b"\0"
    mode, data, device = (entry.mode, entry.data, entry.device) if entry else (0, b"", (0, 0))
    owner, group, links, time, at = 0, 0, 1, 0, (0, 0)
    fields = (inode, mode, owner, group, links, time, len(data), *at, *device, len(raw), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + raw
    return _padded(header) + _padded(data)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % _ALIGN)
