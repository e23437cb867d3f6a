# SPDX-License-Identifier: GPL-2.0-or-later
"""What was changed on this host, written down before each change with what was there, to take it back.

``record.json`` is ``{"version": 1, "changes": [...]}``, oldest first, each with a ``number`` and a ``kind``;
``former/SHA256`` holds the contents of replaced files. Both are in a private directory of whoever changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from typing import Any, Dict, List

VERSION = 1
PARTIAL = ".pytest-seves-partial"
"""What is being written stands beside its place under this suffix."""

ROOTS = "/var/lib/pytest-seves/provision"
"""Where root's record is."""

State = Dict[str, Any]
Change = Dict[str, Any]


class Refused(Exception):
    """The host is not as it was left, or not as it must be: nothing was changed."""


def folder() -> str:
    """Where the record of this user is."""
    if os.geteuid() == 0:
        return ROOTS
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "pytest-seves", "provision")


def load(where: str) -> List[Change]:
    """The changes that stand.

    :raises Refused: the record is damaged or of another version.
    """
    path = os.path.join(where, "record.json")
    try:
        with open(path, "rb") as file:
            content = json.load(file)
        version = content["version"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path}: the record of changes cannot be read: {error}") from error
    if version != VERSION:
        raise Refused(
            f"{path}: wanted a record of version {VERSION}, got {version!r}: made by another release"
        )
    changes: List[Change] = content["changes"]
    return changes


class Record:
    """The changes that stand, locked; a context manager. Without changes the directory goes away."""

    def __init__(self) -> None:
        self._where = folder()
        self._lock = -1
        self.changes: List[Change] = []

    def __enter__(self) -> Record:
        while True:
            with contextlib.suppress(FileNotFoundError):  # its last user removed it meanwhile
                os.makedirs(self._where, 0o700, exist_ok=True)
                self._lock = os.open(self._where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if os.path.samestat(os.stat(self._where), os.fstat(self._lock)):
                    break
                os.close(self._lock)
        try:
            self.changes = load(self._where)
        except Refused:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.changes:
            shutil.rmtree(self._where, ignore_errors=True)
            with contextlib.suppress(OSError):  # others may keep something in it
                os.rmdir(os.path.dirname(self._where))
        os.close(self._lock)

    def add(self, change: Change) -> Change:
        """Write a change down, which the caller is about to make."""
        number = max((old["number"] for old in self.changes), default=0) + 1
        self.changes.append({"number": number, **change})
        self.save()
        return self.changes[-1]

    def drop(self, change: Change) -> None:
        """Forget a change that was undone, or never made."""
        self.changes.remove(change)
        self.save()

    def save(self) -> None:
        """Make what is in :attr:`changes` last, atomically."""
        path = os.path.join(self._where, "record.json")
        data = json.dumps({"version": VERSION, "changes": self.changes}, indent=1).encode()
        with open(path + PARTIAL, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + PARTIAL, path)
        os.fsync(self._lock)

    def keep(self, path: str, sha256: str) -> None:
        """Keep a copy of a file that will be replaced.

        :raises Refused: it changed while it was copied.
        """
        kept = self._kept(sha256)
        os.makedirs(os.path.dirname(kept), 0o700, exist_ok=True)
        if os.path.exists(kept):
            return
        _copy(path, kept + PARTIAL)
        if digest(kept + PARTIAL) != sha256:
            raise Refused(f"{path}: somebody else is writing to it")
        os.replace(kept + PARTIAL, kept)

    def _kept(self, sha256: str) -> str:
        return os.path.join(self._where, "former", sha256)

    def put_back(self, path: str, former: State) -> None:
        """Make `path` what it was."""
        if former["kind"] == "absent":
            remove(path)
            return
        remove(path + PARTIAL)
        if former["kind"] == "link":
            os.symlink(former["target"], path + PARTIAL)
        else:
            _copy(self._kept(former["sha256"]), path + PARTIAL)
            os.chown(path + PARTIAL, former["uid"], former["gid"])
            os.chmod(path + PARTIAL, former["mode"])
        os.replace(path + PARTIAL, path)


def state(path: str) -> State:
    """What is at `path`: kind absent, link, file, tree or other, with all that makes it the same again.

    The digest of a tree covers names, kinds, modes, links and contents of all that is in it.
    """
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": "absent"}
    if stat.S_ISLNK(info.st_mode):
        return {"kind": "link", "target": os.readlink(path)}
    known = {"mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}
    if stat.S_ISREG(info.st_mode):
        return {"kind": "file", "sha256": digest(path), **known}
    if stat.S_ISDIR(info.st_mode):
        inside = {name: state(os.path.join(path, name)) for name in sorted(os.listdir(path))}
        return {"kind": "tree", "sha256": hashlib.sha256(json.dumps(inside).encode()).hexdigest(), **known}
    return {"kind": "other", **known}


def digest(path: str) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            total.update(part)
    return total.hexdigest()


def remove(path: str) -> None:
    """Remove what is at `path`, if anything; a tree goes out of its place first, whole."""
    if os.path.isdir(path) and not os.path.islink(path):
        if not path.endswith(PARTIAL):
            os.rename(path, path + PARTIAL)
            path += PARTIAL
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb", opener=_private) as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
