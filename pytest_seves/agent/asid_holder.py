# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes SEV-ES ASIDs out of the pool: VMs that are initialised for SEV-ES and never launched.

They are a child process's, which ends with the agent: then the kernel has every ASID back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import Any, Callable

from pytest_seves.agent import command
from pytest_seves.agent.loop import Loop, Source
from pytest_seves.spec import kvm, sev

_MOST = 1 << 12
Done = Callable[[dict[str, Any]], None]


class AsidHolder:
    """A child that holds all ASIDs of SEV-ES but `free`.

    :param done: called once with ``{"held": n}`` or ``{"error": text}``.
    """

    def __init__(self, loop: Loop, free: int, done: Done) -> None:
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
            self._answer(json.loads(self._said))

    def _end(self) -> None:
        self._answer({"error": "the process that was to hold ASIDs has ended"})

    def _answer(self, told: dict[str, Any]) -> None:
        if self._done:
            done, self._done = self._done, None
            done(told)

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
            answer: dict[str, Any] = {"held": len(_fill(free))}
        except OSError as error:
            answer = {"error": f"KVM: {error}"}
        os.write(1, json.dumps(answer).encode() + b"\n")
        os.read(told, 1)  # until the agent closes its end
        status = 0
    finally:
        command.leave(status)


def _fill(free: int) -> list[int]:
    """Descriptors of VMs that hold an ASID each; the last `free` are closed again."""
    system = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    machines: list[int] = []
    while len(machines) < _MOST:
        machine = fcntl.ioctl(system, kvm.KVM_CREATE_VM, kvm.KVM_X86_DEFAULT_VM)
        try:
            fcntl.ioctl(
                machine, kvm.KVM_MEMORY_ENCRYPT_OP, sev.KVM_SEV_CMD.encode(id=int(sev.SevCmd.KVM_SEV_ES_INIT))
            )
        except OSError as error:
            os.close(machine)
            if error.errno != errno.EBUSY:
                raise
            break  # the pool is empty
        machines.append(machine)
    if free > len(machines):
        raise OSError(errno.EBUSY, f"wanted {free} free SEV-ES ASIDs, got {len(machines)}")
    for machine in machines[len(machines) - free :]:
        os.close(machine)
    return machines[: len(machines) - free]
