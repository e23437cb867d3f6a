# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM on the engine without QEMU: real Vm, Vcpu and Machine above a memory and a VMM of our own."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_seves.model import encryption
from pytest_seves.model.cpu import exits
from pytest_seves.model.kvm_vcpu import Vcpu
from pytest_seves.model.kvm_vm import Vm
from pytest_seves.model.memory import Refusal
from pytest_seves.model.profiles import resolve
from pytest_seves.model.vmsa_sync import compose

KEY = bytes(range(32))
ROM = 0xFFFF0000
ROM_SIZE = 0x10000
RAM_SIZE = 0x200000
_HOST = 0x7F00_0000_0000
_VMSA = 0x1_0000_0000


class Memory:
    """The VMM's address space: RAM at one place, the ROM at another."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM_SIZE)
        self.rom = bytearray(ROM_SIZE)

    def _find(self, address: int, size: int) -> tuple[bytearray, int]:
        for base, memory in ((_HOST, self.ram), (_HOST + ROM, self.rom)):
            if base <= address and address + size <= base + len(memory):
                return memory, address - base
        raise Refusal(14)

    def read(self, address: int, size: int) -> bytes:
        """As TargetMemory.read()."""
        memory, at = self._find(address, size)
        return bytes(memory[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        """As TargetMemory.write()."""
        memory, at = self._find(address, len(data))
        memory[at : at + len(data)] = data


class Board:
    """A VM with `code` at the reset vector's ROM; `kind` is "es", "sev" or "plain".

    :ivar ports: what was written to ports, in order; reads give `answers` by port, else 0xFF.
    :ivar results: what each KVM_RUN that was no port or memory access returned, with the exit reason.
    """

    def __init__(
        self,
        code: bytes,
        kind: str = "plain",
        *,
        vcpus: int = 1,
        at: int = 0xFFF0,
        profile: str = "linux-6.12",
        directory: Path = Path("/nonexistent"),
        registers: Callable[[Vcpu], None] | None = None,
    ) -> None:
        self.memory = Memory()
        self.memory.rom[at : at + len(code)] = code
        self.ports: list[tuple[int, bytes]] = []
        self.mmio: list[tuple[int, bytes]] = []
        self.answers: dict[int, int] = {}
        self.results: list[tuple[int, int]] = []
        supervisor: Any = SimpleNamespace(
            memory=self.memory,
            profile=resolve(profile),
            process_id=1,
            directory=str(directory),
            machines=[],
            vcpu_of_thread={},
            answer=self._answer,
            serve_until=self._serve_until,
        )
        self.vm = Vm(supervisor, 0)
        self.vm.slots = {0: (0, RAM_SIZE, _HOST, 0), 1: (ROM, ROM_SIZE, _HOST + ROM, 0)}
        self.vm.in_kernel_lapic = True
        if kind != "plain":
            sev: Any = SimpleNamespace(es=kind == "es", ghcb_version=2, memory_key=lambda: KEY)
            self.vm.sev = sev
            self.memory.rom[:] = encryption.encrypt(KEY, _HOST + ROM, bytes(self.memory.rom))
        self.vcpus: list[Vcpu] = []
        for number in range(vcpus):
            vcpu = Vcpu(self.vm, number)
            vcpu.run = mmap.mmap(-1, 12288)
            self.vm.vcpus[number] = vcpu
            self.vcpus.append(vcpu)
            if registers is not None:
                registers(vcpu)
            if kind == "es":
                vcpu.vmsa_address = _VMSA + 0x1000 * number
                vcpu.vmsa = encryption.encrypt(KEY, vcpu.vmsa_address, compose(vcpu, 0))
        for vcpu in self.vcpus:
            self.enter(vcpu)

    def enter(self, vcpu: Vcpu) -> None:
        """KVM_RUN."""
        vcpu.waiting = vcpu.identifier
        self.vm.execute(vcpu)

    def work(self, turns: int = 1000) -> None:
        """Let the guest go on until it waits, or ends, or for this many turns."""
        machine = self.vm.machine
        assert machine is not None
        for _ in range(turns):
            if machine.work() is None or any(not vcpu.in_kvm_run for vcpu in self.vcpus):
                return

    def guest(self, address: int, size: int = 8, *, private: bool = True) -> int:
        """A number in the guest's memory."""
        assert self.vm.machine is not None
        return int.from_bytes(self.vm.machine.memory.read(address, size, private), "little")

    def _serve_until(self, _: Vcpu) -> bool:
        return True

    def _answer(self, identifier: int, result: int) -> None:
        machine, vcpu = self.vm.machine, self.vcpus[identifier]
        assert machine is not None
        asked = machine.processors[identifier].asked
        if isinstance(asked, exits.PortIo) and result == 0:
            if asked.data is not None:
                self.ports.append((asked.port, asked.data))
            else:
                size = asked.size * asked.count
                value = self.answers.get(asked.port, (1 << 8 * size) - 1)
                vcpu.run[4096 : 4096 + size] = value.to_bytes(size, "little")
            vcpu.waiting = identifier
        elif isinstance(asked, exits.Mmio) and result == 0:
            if asked.data is not None:
                self.mmio.append((asked.gpa, asked.data))
            else:
                vcpu.run[40:48] = self.answers.get(asked.gpa, 0).to_bytes(8, "little")
            vcpu.waiting = identifier
        else:
            self.results.append((result, int.from_bytes(vcpu.run[8:12], "little")))
