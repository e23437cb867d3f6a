# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command, and fail when it leaves a process behind.

Every process started below this one, in whatever session and however often forked, becomes its child when
its own parent ends (PR_SET_CHILD_SUBREAPER). So what is still there after the command has ended is exactly
what the command left behind; other work on the machine is never mistaken for it.

Usage: python .ci/leftovers.py [--grace-s S] LIMIT_S COMMAND [ARGUMENT...]
Exit status: the command's; 124 when it outlived LIMIT_S; 1 when it succeeded and left something behind.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
EXIT_TIMEOUT = 124


def become_subreaper() -> None:
    """Make this process the parent of every orphan below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> dict[int, str]:
    """Living processes below this one: number to command line."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name = (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        parents[int(entry.name)] = int(parent)
        if state != "Z":
            commands[int(entry.name)] = command.strip() or f"[{name}]"
    return {pid: command for pid, command in commands.items() if is_below(pid, root, parents)}


def is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    """Whether a process descends from another."""
    while pid := parents.get(pid, 0):
        if pid == root:
            return True
    return False


def reap_until_alone(deadline: float) -> dict[int, str]:
    """Reap orphans as they end; what still lives at the deadline is returned."""
    while True:
        left = descendants(os.getpid())
        while reap_one():
            pass
        remaining_s = deadline - time.monotonic()
        if not left or remaining_s <= 0:
            return left
        signal.sigtimedwait({signal.SIGCHLD}, remaining_s)


def reap_one() -> bool:
    """Collect one ended child, if there is one."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def end(processes: dict[int, str], grace_s: float) -> None:
    """Kill what is left, so that it does not outlive this run as well."""
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it went with its parent
    reap_until_alone(time.monotonic() + grace_s)


def run(command: list[str], limit_s: float) -> int:
    """Run the command to its end, or to the limit."""
    process = subprocess.Popen(command)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        print(f"leftovers: still running after {limit_s:.0f} s: {' '.join(command)}", file=sys.stderr)
        for pid, line in descendants(os.getpid()).items():
            print(f"leftovers:   {pid} {line[:200]}", file=sys.stderr)
        process.kill()
        process.wait()
        return EXIT_TIMEOUT


def main() -> int:
    """Run, then look; see the module's docstring for the exit status."""
    parser = argparse.ArgumentParser(description="Run a command; fail when it leaves a process behind")
    parser.add_argument("--grace-s", type=float, default=10.0, help="how long what ends by itself may take")
    parser.add_argument("limit_s", type=float)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    become_subreaper()
    status = run(arguments.command, arguments.limit_s)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # not before: the command would inherit it
    left = reap_until_alone(time.monotonic() + arguments.grace_s)
    for pid, line in left.items():
        print(f"leftovers: left behind: {pid} {line[:400]}", file=sys.stderr)
    end(left, arguments.grace_s)
    return status or (1 if left else 0)


if __name__ == "__main__":
    sys.exit(main())
