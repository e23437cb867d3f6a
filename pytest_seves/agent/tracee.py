# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tracer knows of each process and thread of a VMM."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Optional

from pytest_seves.agent import ptrace
from pytest_seves.agent.capture import Call, Memory
from pytest_seves.agent.descriptors import Descriptors
from pytest_seves.agent.injection import Injecting
from pytest_seves.agent.sabotage import Changes

_NAME_SIZE = 16


class Process:
    """One process (thread group) of the VMM: what its threads share."""

    def __init__(self, pid: int, descriptors: Descriptors) -> None:
        self.pid = pid
        self.descriptors = descriptors
        self.memory = Memory()
        self.used_kvm = False
        self.live: set[Optional[int]] = set()  # VMs whose vCPUs have run or are measured: results matter now
        # (VM, vCPU) that has not run yet -> the thread that made it or used it last
        self.waiting: dict[tuple[Optional[int], int], int] = {}
        self.follow_new = False  # a thread that does not exist yet may run one of them

    def executed(self) -> None:
        """An execve: other memory, and no vCPU any more."""
        self.memory.close()
        self.descriptors.executed()
        self.live.clear()
        self.waiting.clear()
        self.follow_new = False


class Tracee:
    """One thread of the VMM."""

    __slots__ = ("call", "changes", "injecting", "process", "resume", "skip_exit", "tid")

    def __init__(self, tid: int, process: Process, resume: int) -> None:
        self.tid = tid
        self.process = process
        self.resume = resume  # CONT, or SYSCALL to see its system calls
        self.call: Optional[Call] = None  # in the kernel; its exit is wanted
        self.changes: Optional[Changes] = None
        self.injecting: Optional[Injecting] = None
        self.skip_exit = False  # the next stop is the exit of a call that does not matter

    def executed(self, resume: int) -> None:
        """An execve: this is the only thread now, and it is in no call of before."""
        self.call = self.changes = self.injecting = None
        self.skip_exit = False
        self.resume = resume

    def takes_name(self, number: int, option: int, address: int, names: frozenset[bytes]) -> bool:
        """Whether this system call gives the thread one of `names`."""
        if not names or number != ptrace.SYS_PRCTL or option != ptrace.PR_SET_NAME:
            return False
        return self.process.memory.read(self.tid, address, _NAME_SIZE).partition(b"\0")[0] in names


def signed(fd: int) -> int:
    """A descriptor number out of a 64-bit register."""
    fd &= 0xFFFFFFFF
    return fd - (1 << 32) if fd >> 31 else fd


def send_signal(pids: list[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def thread_group(tid: int) -> int:
    """The process of a thread; the thread itself when it is gone."""
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except OSError:  # it is gone
        pass
    return tid


def wait_status(status: int) -> dict[str, Any]:
    """A wait status as the journal has it: ``{"status": n}`` or ``{"signal": n, "core": bool}``."""
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status)}
    return {"status": os.WEXITSTATUS(status)}
