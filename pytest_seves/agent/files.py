# SPDX-License-Identifier: GPL-2.0-or-later
"""Files on the host: a private directory for what the controller brings, and bounded reads of any file."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from typing import Any

MAX_READ = 16 << 20
"""The largest `length` of a read, in bytes."""

_PREFIX = "pytest-seves-"
_LOCK = ".lock"
_PARTIAL = ".partial"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class WriteFailed(OSError):
    """A file could not be written; what was there of it is removed.

    :ivar evidence: path, size and free bytes of the file system.
    """

    def __init__(self, error: OSError, path: str, size: int) -> None:
        super().__init__(error.errno, error.strerror, path)
        self.evidence: dict[str, Any] = {
            "path": path,
            "size": size,
            "free": _free_bytes(os.path.dirname(path)),
        }


def _free_bytes(directory: str) -> int | None:
    try:
        info = os.statvfs(directory)
    except OSError:
        return None
    return info.f_bavail * info.f_frsize


class TempDir:
    """This run's directory: mode 0700, removed by :meth:`remove`.

    It holds a locked file while the agent lives, so that a later agent recognises and removes what an agent
    that was killed left behind.
    """

    def __init__(self, parent: str | None = None) -> None:
        self.parent = parent or tempfile.gettempdir()
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=self.parent)
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def put(self, name: str, data_b64: str, sha256: str, offset: int = 0, last: bool = True) -> str:
        """Write a file whole or not at all; an existing one is replaced. Returns its path.

        A large one comes in pieces, in order; it is there when its `last` piece is.

        :param sha256: of the whole file.
        :raises ValueError: a name with a slash or odd characters, bad base64, a piece that does not follow
            the one before, or another digest than said. What was there of the file is gone then.
        :raises WriteFailed: no space, over a quota or limit.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"file name {name!r}: wanted letters, digits, '.', '_', '-', at most 128")
        try:
            data = base64.b64decode(data_b64, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{name}: data_b64 is not base64: {error}") from error
        path = os.path.join(self.path, name)
        keep = False
        try:
            self._append(path, data, offset)
            if last:
                self._finish(path, sha256)
            keep = not last
        finally:
            if not keep:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + _PARTIAL)
        return path

    def _append(self, path: str, data: bytes, offset: int) -> None:
        partial = path + _PARTIAL
        there = os.path.getsize(partial) if offset and os.path.exists(partial) else 0
        if there != offset:
            raise ValueError(f"{path}: wanted the piece at {there}, got the one at {offset}")
        try:
            with open(partial, "ab" if offset else "wb", opener=_private) as file:
                file.write(data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(partial, 0)  # free first: what is full now shows the free space that was there
            raise WriteFailed(error, path, offset + len(data)) from error

    def _finish(self, path: str, sha256: str) -> None:
        digest, size = hashlib.sha256(), 0
        with open(path + _PARTIAL, "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
                size += len(part)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path}: wanted sha256 {sha256}, got {digest.hexdigest()} ({size} bytes)")
        os.replace(path + _PARTIAL, path)

    def remove_stale(self) -> None:
        """Remove the directories of this user's agents that are no more."""
        for entry in os.scandir(self.parent):
            ours = entry.name.startswith(_PREFIX) and entry.path != self.path
            if (
                ours
                and entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            ):
                _remove_unlocked(entry.path)

    def remove(self) -> None:
        """Remove the directory with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _remove_unlocked(directory: str) -> None:
    try:
        lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # not one of ours, or being made right now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # its agent lives
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)


def read(path: str, offset: int = 0, length: int = MAX_READ) -> dict[str, Any]:
    """At most `length` bytes of a file from `offset`: ``{"data_b64", "size"}``, size being the whole file's.

    Never blocks on a FIFO. A character device that cannot seek is read from where it is.

    :raises ValueError: a negative number, or a length above :data:`MAX_READ`.
    :raises OSError: no such file, no permission, a directory.
    """
    if offset < 0 or not 0 <= length <= MAX_READ:
        raise ValueError(f"{path}: wanted offset >= 0 and length 0 to {MAX_READ}; got {offset} and {length}")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        seekable = stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)
        if seekable:
            os.lseek(fd, offset, os.SEEK_SET)
        data = bytearray()
        while len(data) < length:
            chunk = os.read(fd, min(length - len(data), 1 << 20))
            data += chunk
            if not chunk or not seekable:
                break
    finally:
        os.close(fd)
    return {"data_b64": base64.b64encode(data).decode(), "size": info.st_size}
