# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks on files in a directory that all users of a host share. The kernel frees them with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


def open_lock(path: str) -> int:
    """A descriptor of the lock file at `path`, made when missing; any user may lock it.

    Read-only is enough to lock, and all that another account's file in a sticky directory allows.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, _FLAGS)
    with contextlib.suppress(FileExistsError):
        made = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(made, 0o644)  # whatever the umask: other users must be able to open it
        return made
    return os.open(path, _FLAGS)


def try_lock(descriptor: int, how: int) -> bool:
    """Take the lock, `fcntl.LOCK_SH` or `LOCK_EX`, unless somebody is in the way."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
