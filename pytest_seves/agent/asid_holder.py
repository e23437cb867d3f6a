# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes SEV-ES ASIDs out of the pool: VMs that are initialised for SEV-ES and never launched.

They are a child process's, which ends with the agent: then the kernel has every ASID back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from typing import Any, Callable

from pytest_seves.agent import command, facts
from pytest_seves.agent.loop import Loop, Source
from pytest_seves.spec import kvm, sev

_MOST = 1 << 12
_SETTLE_S = 3.0
_AGAIN_S = 0.01  # the host does not tell when it has changed
Done = Callable[[dict[str, Any]], None]


class AsidHolder:
    """A child that holds all ASIDs of SEV-ES but `free`.

    :param done: called with ``{"held": n}`` or ``{"error": text}``.
    """

    def __init__(self, loop: Loop, free: int, done: Done) -> None:
        self.free = free
        self.held = 0
        self._done: Done | None = done
        self._said = b""
        read, write = os.pipe()
        told, self._tell = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _child(parent, told, write, free)
        os.close(told)
        os.close(write)
        self._ended: Callable[[], None] | None = None
        self._source = Source(loop, read, self._hear, self._end)
        loop.on_exit(self.pid, lambda status: self._gone())

    def _hear(self, data: bytes) -> None:
        self._said += data
        if self._said.endswith(b"\n"):
            said, self._said = self._said, b""
            self._answer(json.loads(said))

    def _end(self) -> None:
        self._answer({"error": "the process that was to hold ASIDs has ended"})

    def _answer(self, told: dict[str, Any]) -> None:
        self.held = int(told.get("held", 0))
        if self._done:
            done, self._done = self._done, None
            done(told)

    def leave(self, free: int, done: Done) -> None:
        """Close so many machines that `free` ASIDs, more than before, should be free."""
        self._done = done
        os.write(self._tell, bytes([free - self.free]))
        self.free = free

    def release(self, ended: Callable[[], None]) -> None:
        """Give the ASIDs back; calls `ended` when the child is gone."""
        self._ended = ended
        os.close(self._tell)

    def _gone(self) -> None:
        self._source.drain()
        if self._ended:
            self._ended()


def _child(parent: int, told: int, write: int, free: int) -> None:
    """The forked side. Never returns."""
    status = 1
    try:
        command.become_child(parent, {1: write}, keep=(told,))
        try:
            machines = _take(free)
            _tell({"held": len(machines)})
        except OSError as error:
            machines = []
            _tell({"error": f"KVM: {error}"})
        while count := os.read(told, 1):  # until the agent closes its end
            _close(machines, count[0])
            _tell({"held": len(machines)})
        status = 0
    finally:
        command.leave(status)


def _close(machines: list[int], count: int) -> None:
    """Close so many, and wait until the host counts them as free: a VM may outlive its descriptor."""
    wanted = facts.es_asids_in_use() - min(count, len(machines))
    for _ in range(min(count, len(machines))):
        os.close(machines.pop())
    deadline = time.monotonic() + _SETTLE_S
    while facts.es_asids_in_use() > wanted and time.monotonic() < deadline:
        time.sleep(_AGAIN_S)


def _tell(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _take(free: int) -> list[int]:
    """Descriptors of VMs that hold an ASID each.

    Where the host counts ASIDs, no more are taken than must be: that closing a VM gives its ASID back is for
    a test to judge. Elsewhere the pool is emptied, and `free` of them are closed again.
    """
    counted = facts.misc()
    capacity, current = counted["capacity"] or {}, counted["current"] or {}
    room = capacity["sev_es"] - current["sev_es"] if "sev_es" in capacity and "sev_es" in current else None
    machines = _fill(_MOST if room is None else max(room - free, 0))
    if free > (len(machines) if room is None else room):
        found = len(machines) if room is None else room
        raise OSError(errno.EBUSY, f"wanted {free} free SEV-ES ASIDs, got {found}")
    if room is None:
        _close(machines, free)
    return machines


def _fill(most: int) -> list[int]:
    """At most so many VMs that are initialised for SEV-ES; fewer where the pool is empty before."""
    system = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    init = sev.KVM_SEV_CMD.encode(id=int(sev.SevCmd.KVM_SEV_ES_INIT))
    machines: list[int] = []
    while len(machines) < most:
        machine = fcntl.ioctl(system, kvm.KVM_CREATE_VM, kvm.KVM_X86_DEFAULT_VM)
        try:
            fcntl.ioctl(machine, kvm.KVM_MEMORY_ENCRYPT_OP, init)
        except OSError as error:
            os.close(machine)
            if error.errno != errno.EBUSY:
                raise
            break
        machines.append(machine)
    return machines
