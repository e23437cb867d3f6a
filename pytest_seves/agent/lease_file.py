# SPDX-License-Identifier: GPL-2.0-or-later
"""What each agent writes down about the run that it serves, for the other agents of the host.

One file per agent, in the directory that all of them share. The agent locks its file for as long as it lives,
so who holds the host is the kernel's word and no clock's; what is written says whom to name. Everybody may
read a file, only its owner may change it, and one that makes no sense is as good as none: whoever has an
account can put one there.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Dict, List

from pytest_seves.agent.locks import try_lock

_PREFIX = "pytest-seves.lease."
LOCK_NAME = _PREFIX + "lock"
_SIZE = 4096
_LONGEST = 64
_KINDS: Dict[str, Any] = {
    **dict.fromkeys(("run", "user", "machine", "boot", "beat"), str),
    **dict.fromkeys(("pid", "agent", "token", "since_ns", "expiry_s", "es_asids"), (int, float)),
    "shared": bool,
}


@functools.cache
def boot_id() -> str:
    """Which boot of the host this is: monotonic times and process ids of another one mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@dataclass(frozen=True)
class Entry:
    """The file of an agent, as it was when looked at.

    :ivar uid: whose it is.
    :ivar locked: its agent lives.
    :ivar record: run, user, machine, pid: the controller's; agent: the agent's pid; shared; token; boot;
        since_ns, beat: monotonic, of the host; expiry_s: for how long the word of a silent agent counts;
        es_asids: SEV-ES ASIDs that were in use before any run had the host.
    """

    path: str
    uid: int
    locked: bool
    record: Dict[str, Any]

    @property
    def run(self) -> str:
        """The run that the agent serves."""
        return str(self.record["run"])

    @property
    def token(self) -> int:
        """The fencing token of the run's lease: a later lease has a higher one."""
        return int(self.record["token"])

    @property
    def alive(self) -> bool:
        """An agent of this boot holds it."""
        return self.locked and self.record["boot"] == boot_id()

    @property
    def silent_s(self) -> float:
        """Seconds since the agent said that it and its controller are well."""
        return (time.monotonic_ns() - int(self.record["beat"])) / 1e9

    @property
    def expired(self) -> bool:
        """The agent lives and has been silent for too long: stopped, or hanging in the kernel."""
        return self.alive and self.silent_s > self.record["expiry_s"]


def read_all(directory: str) -> List[Entry]:
    """Every file that makes sense, the lowest token first."""
    entries = []
    for name in os.listdir(directory):
        if name.startswith(_PREFIX) and name != LOCK_NAME:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                entries.append(_read(os.path.join(directory, name)))
    return sorted(entries, key=lambda entry: entry.token)


def _read(path: str) -> Entry:
    """The file at `path`.

    :raise OSError, ValueError: it cannot be opened, or is none of ours.
    """
    # Not a link to elsewhere, and no waiting for the other end of a pipe that somebody put there.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{path}: not a regular file")
        record = json.loads(os.read(fd, _SIZE))
        _check(record)
        return Entry(path, info.st_uid, not try_lock(fd, fcntl.LOCK_SH), record)
    finally:
        os.close(fd)


def _check(record: Any) -> None:
    """:raise ValueError: this is no record."""
    if not isinstance(record, dict) or record.keys() != _KINDS.keys():
        raise ValueError("wanted an object with the keys of a record")
    for key, kind in _KINDS.items():
        value = record[key]
        if not isinstance(value, kind) or (isinstance(value, bool) != (kind is bool)):
            raise ValueError(f"{key}: {value!r}")
        if isinstance(value, str) and not (value.isprintable() and 0 < len(value) <= _LONGEST):
            raise ValueError(f"{key}: wanted 1 to {_LONGEST} printable characters")
        if kind is not bool and not isinstance(value, str) and not 0 <= value < 1 << 62:
            raise ValueError(f"{key}: {value!r} is out of range")
    if not record["run"].isalnum() or not record["beat"].isdecimal():
        raise ValueError(f"run {record['run']!r}, beat {record['beat']!r}: wanted letters and digits")


class OwnFile:
    """This agent's file: made, locked and written.

    :raise ValueError: the record is none.
    """

    def __init__(self, directory: str, record: Dict[str, Any]) -> None:
        self.record = {**record, "agent": os.getpid(), "boot": boot_id(), "since_ns": time.monotonic_ns()}
        data = self._data()
        self._fd, self.path = tempfile.mkstemp(prefix=f"{_PREFIX}{record['run']}.", dir=directory)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.fchmod(self._fd, 0o644)  # others may read who holds the host, and not change it
        os.pwrite(self._fd, data, 0)

    def _data(self) -> bytes:
        """Always the same size and every number in its place: who reads meanwhile reads sense."""
        self.record["beat"] = f"{time.monotonic_ns():020}"
        _check(self.record)
        return json.dumps(self.record).encode().ljust(_SIZE)

    def beat(self) -> None:
        """Write down that all is well."""
        os.pwrite(self._fd, self._data(), 0)

    @property
    def in_place(self) -> bool:
        """The file is where it was put: who takes the host from a silent agent takes its file away."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def close(self) -> None:
        """Let go. The file stays, for its token; the next agent that holds the host removes it."""
        os.close(self._fd)
