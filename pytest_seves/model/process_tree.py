# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes descend from one, and how to end them all."""

from __future__ import annotations

import contextlib
import os
import signal


def thread_group(thread: int) -> int | None:
    """The process that a thread belongs to; None if it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            text = file.read()
    except OSError:
        return None
    return int(text.partition(b"\nTgid:")[2].split(None, 1)[0])


def _parents() -> dict[int, int]:
    out = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                out[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    return out


def descendants(root: int, spare: frozenset[int] = frozenset()) -> list[int]:
    """Children of `root`, theirs, and so on; not `spare` and what is below them."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    out: list[int] = []
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            if child not in spare:
                out.append(child)
                queue.append(child)
    return out


def end_descendants(spare: frozenset[int] = frozenset()) -> None:
    """SIGKILL every descendant of this process, a subreaper, until none is left but `spare`."""
    while found := descendants(os.getpid(), spare):
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if not _reap_one(spare):
            return


def _reap_one(spare: frozenset[int]) -> bool:
    """Wait for one dead child that is not spared; False if there is none to wait for."""
    own = [child for child, parent in _parents().items() if parent == os.getpid() and child not in spare]
    for child in own:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
            return True
    return False
