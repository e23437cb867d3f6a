# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the recorder issues in the VMM's name, at the exit stop of a call of the VMM's own.

The thread executes its `syscall` instruction again, with other registers; everything is put back afterwards,
so the VMM only sees that its own call took longer.
"""

from __future__ import annotations

import struct
import time
from typing import Optional

from pytest_seves.agent import ptrace
from pytest_seves.agent.capture import Call, plan
from pytest_seves.agent.descriptors import Descriptors
from pytest_seves.agent.sabotage import Injection
from pytest_seves.spec import kvm

_RED_ZONE = 128
_ALL_SIGNALS = 0xFFFFFFFFFFFFFFFF
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_DATA_POINTER = 8  # in struct kvm_sev_cmd


class Injecting:
    """The calls that one thread still has to issue before it goes on.

    Signals are blocked meanwhile: a handler would run in the middle of a call that the VMM never made.
    """

    def __init__(self, call: Call, injections: list[Injection], descriptors: Descriptors) -> None:
        self._tid = call.tid
        self._own = call
        self._left = injections
        self._descriptors = descriptors
        self._registers: list[int] = []
        self._mask = 0
        self._undo: list[tuple[int, bytes]] = []
        self._visible = False
        self._call: Optional[Call] = None

    def start(self) -> bool:
        """Save the thread's state and set up the first call; False: nothing can be issued here."""
        registers = ptrace.get_registers(self._tid)
        if registers is None:
            return False
        at = registers[ptrace.RIP] - len(_SYSCALL_INSTRUCTION)
        if self._own.memory.read(self._tid, at, len(_SYSCALL_INSTRUCTION)) != _SYSCALL_INSTRUCTION:
            return False
        self._registers = registers
        self._mask = ptrace.get_signal_mask(self._tid)
        ptrace.set_signal_mask(self._tid, _ALL_SIGNALS)
        return self._next()

    def ended(self, ret: int) -> tuple[Optional[Call], bool]:
        """The call under way returned `ret`: its event, and whether another one is set up now."""
        call, self._call = self._call, None
        if call is not None:
            call.leave(ret)
            call.dt = time.monotonic_ns() - call.issued_ns
            for address, old in self._undo:
                call.memory.write(call.tid, address, old)
            if self._visible:
                self._registers[ptrace.RAX] = ret & 0xFFFFFFFFFFFFFFFF
        return call, self._next()

    def _next(self) -> bool:
        if not self._left:
            ptrace.set_registers(self._tid, self._registers)
            ptrace.set_signal_mask(self._tid, self._mask)
            return False
        injection = self._left.pop(0)
        fd = injection.fd
        if fd is None and injection.vcpu is not None:
            fd = self._descriptors.vcpu(self._own.descriptor.vm, injection.vcpu)
        if fd is None:
            return self._next()
        self._undo = []
        self._visible = injection.visible
        arg = self._prepare(injection)
        call = Call(
            time.monotonic_ns(), self._own.pid, self._tid, fd, injection.request, arg, self._own.memory
        )
        call.descriptor = self._descriptors.at(fd, injection.request)
        call.plan = plan(injection.request)
        call.injected = True
        call.rules = [injection.rule]
        call.enter()
        self._call = call
        registers = list(self._registers)
        registers[ptrace.RIP] -= len(_SYSCALL_INSTRUCTION)
        registers[ptrace.RAX] = ptrace.SYS_IOCTL
        registers[ptrace.RDI] = fd & 0xFFFFFFFFFFFFFFFF
        registers[ptrace.RSI] = injection.request
        registers[ptrace.RDX] = arg
        return ptrace.set_registers(self._tid, registers)

    def _prepare(self, injection: Injection) -> int:
        """Put the bytes of the call into the VMM's memory; the value of its argument."""
        if injection.as_sev is not None:
            self._put(self._own.arg, struct.pack("<I", injection.as_sev))
            return self._own.arg
        raw = injection.raw or b""
        size = plan(injection.request).size
        if not size:
            return int.from_bytes(raw, "little")
        raw = raw.ljust(size, b"\0")
        start = (self._registers[ptrace.RSP] - _RED_ZONE - len(raw) - len(injection.data)) & ~0x3F
        if injection.data and injection.request == kvm.KVM_MEMORY_ENCRYPT_OP:
            pointer = struct.pack("<Q", start + len(raw))
            raw = raw[:_DATA_POINTER] + pointer + raw[_DATA_POINTER + len(pointer) :]
        self._put(start, raw + injection.data)
        return start

    def _put(self, address: int, data: bytes) -> None:
        memory = self._own.memory
        old = memory.read(self._tid, address, len(data))
        self._undo.append((address, old))
        memory.write(self._tid, address, data)
