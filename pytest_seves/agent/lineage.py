# SPDX-License-Identifier: GPL-2.0-or-later
"""Who dies with whom: nothing that the agent started may outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which forked it, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that it can be found and killed."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def processes() -> dict[int, tuple[int, bool]]:
    """Every process of this machine: its parent, and whether it has ended and waits to be reaped."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                found[int(name)] = (int(parent), state in (b"Z", b"X"))
    return found


def kill_run(variable: str, runs: dict[str, int], agents: set[int]) -> list[int]:
    """SIGKILL what these runs have left behind; who has not ended yet.

    :param variable: name in the environment whose value tells the run.
    :param runs: the user of each value: a process of another user is none of it.
    :param agents: processes that have not ended and are spared, but not what descends from them.
    """
    if not runs:
        return []
    tree = {pid: parent for pid, (parent, ended) in processes().items() if not ended}
    doomed = [pid for pid in tree if _is_of(pid, variable, runs) or _descends(pid, agents, tree)]
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return doomed


def _is_of(pid: int, variable: str, runs: dict[str, int]) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        user, entries = os.fstat(file.fileno()).st_uid, file.read().split(b"\0")
        return any(f"{variable}={run}".encode() in entries for run in runs if runs[run] == user)
    return False


def _descends(pid: int, ancestors: set[int], tree: dict[int, int]) -> bool:
    while pid in tree:
        pid = tree[pid]
        if pid in ancestors:
            return True
    return False


def children() -> list[int]:
    """The processes whose parent this process is."""
    me = os.getpid()
    return [pid for pid, (parent, _) in processes().items() if parent == me]


def kill_descendants(timeout_s: float = 5.0) -> list[int]:
    """SIGKILL every descendant and reap it; those of a killed one follow as they become orphans.

    Returns who is still there after `timeout_s`: a process that hangs in the kernel cannot be helped.
    """
    deadline = time.monotonic() + timeout_s
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        _reap_ended()
        left = children()
        remaining = deadline - time.monotonic()
        if not left or remaining <= 0:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, remaining)


def _reap_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
