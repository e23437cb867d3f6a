# SPDX-License-Identifier: GPL-2.0-or-later
"""Files below a directory: read as somebody else may have filled it, written as a whole or not at all.

No name leads out of it, and no read is without a bound.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError

#: Bytes of a JSON file, of one line of a JSON Lines file, and of any other file.
LONGEST_JSON = 64 << 20
LONGEST_LINE = 4 << 20
LONGEST_FILE = 1 << 30
_NESTED = errno.ELOOP, errno.ENOTDIR


class Folder:
    """A directory and what is below it.

    :param sealed: the SHA-256 that each file must have, by name; what is not in it is refused. None: any.
    """

    def __init__(self, root: Path, sealed: dict[str, str] | None = None) -> None:
        self.root = root
        self.sealed = sealed

    def read(self, name: str, *, limit: int = LONGEST_FILE) -> bytes:
        """All of a file.

        :raise EvidenceError: it is missing, no regular file below the directory, longer than `limit`, or not
            what was sealed.
        """
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise self.error(name, f"wanted at most {limit} bytes, got {size}")
            content = file.read(limit + 1)
        self._check(name, self.digest(content))
        return content

    def json(self, name: str, *, limit: int = LONGEST_JSON) -> dict[str, Any]:
        """A JSON file that is an object.

        :raise EvidenceError: as :meth:`read`, or it is none.
        """
        return self.object(name, self.read(name, limit=limit))

    def object(self, name: str, content: bytes) -> dict[str, Any]:
        """The JSON object in what :meth:`read` gave, or in a line of it.

        :raise EvidenceError: it is none.
        """
        try:
            value = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.error(name, f"wanted a JSON object: {error}: {content[:80]!r}") from None
        if not isinstance(value, dict):
            raise self.error(name, f"wanted a JSON object, got {content[:80]!r}")
        return value

    def lines(self, name: str) -> Iterator[tuple[int, bytes, bool]]:
        """(number from 1, line, whether it ended) of each line.

        :raise EvidenceError: as :meth:`read`; the seal is checked after the last one.
        """
        with self._open(name) as file:
            sha256 = hashlib.sha256()
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise self.error(f"{name}:{number}", f"wanted a line of at most {LONGEST_LINE} bytes")
                sha256.update(line)
                yield number, line.rstrip(b"\n"), line.endswith(b"\n")
        self._check(name, sha256.hexdigest())

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, whatever was sealed.

        :raise EvidenceError: it is missing, or no regular file below the directory.
        """
        with self._open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @staticmethod
    def digest(content: bytes) -> str:
        """The SHA-256 of some bytes."""
        return hashlib.sha256(content).hexdigest()

    def error(self, name: str, what: str) -> EvidenceError:
        """An error about one file."""
        return EvidenceError(f"{self.root / name if _fits(name) else self.root}: {what}", file=name)

    def _check(self, name: str, sha256: str) -> None:
        if self.sealed is None:
            return
        wanted = self.sealed.get(name)
        if wanted is None:
            raise self.error(name, "it is not among the files that were sealed")
        if sha256 != wanted:
            raise self.error(name, f"it was changed: wanted SHA-256 {wanted}, got {sha256}")

    def _open(self, name: str) -> io.BufferedReader:
        """The file, with no link on the way to it followed, and no wait for a pipe."""
        if not _fits(name):
            raise EvidenceError(
                f"{self.root}: {name[:200]!r}: wanted a name of a file below this directory: relative, "
                "without '..'",
                file=name,
            )
        *folders, last = name.split("/")
        at = -1
        try:
            at = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            for part in folders:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = below
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except OSError as error:
            what = "a link, or not a directory, on the way" if error.errno in _NESTED else error.strerror
            raise self.error(name, f"cannot be read: {what}") from None
        finally:
            if at >= 0:
                os.close(at)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self.error(name, "wanted a regular file")
        return open(descriptor, "rb")


def json_file(value: object) -> bytes:
    """What a JSON file of a bundle or a report holds: ASCII, so that no text in it is more than data."""
    return json.dumps(value, indent=1).encode("ascii") + b"\n"


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader finds all of it, or what was there before."""
    new = file.with_name(f".tmp-{os.getpid()}-{file.name}")
    new.write_bytes(content)
    new.rename(file)


def _fits(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a character: JSON has such, and no file system
        return False
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
