# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM on the engine without QEMU: real Vm, Vcpu and Machine above a memory and a VMM of our own."""

from __future__ import annotations

import errno
import mmap
import os
import select
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
from pytest_seves.spec import kvm

KEY = bytes(range(32))
ROM = 0xFFFF0000
ROM_SIZE = 0x10000
RAM_SIZE = 0x400000
#: In long mode the first two MiB are private, the next two shared, and those at ALIAS are the first again,
#: without the C-bit.
SHARED = 0x200000
ALIAS = 0x400000
HANDLERS = 0x9000
STACK = 0x7000
_GDT, _IDT, _PML4, _TSS = 0x5000, 0x6000, 0x10000, 0x4000
CODE64, DATA, USER_CODE, USER_DATA = 0x08, 0x10, 0x1B, 0x23
C_BIT = 1 << 39
#: The table whose entries are the first GiB's, each for two MiB.
TABLE = _PML4 + 0x2000
HOST = 0x7F00_0000_0000
_VMSA = 0x1_0000_0000


class Memory:
    """The VMM's address space: RAM at one place, the ROM at another."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM_SIZE)
        self.rom = bytearray(ROM_SIZE)

    def _find(self, address: int, size: int) -> tuple[bytearray, int]:
        for base, memory in ((HOST, self.ram), (HOST + ROM, self.rom)):
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


def start_at(offset: int) -> Callable[[Vcpu], None]:
    """KVM_SET_REGS with another RIP."""

    def set_registers(vcpu: Vcpu) -> None:
        regs = kvm.REGS.decode(vcpu.regs)
        vcpu.regs = kvm.REGS.encode(**{**regs, "rip": offset})

    return set_registers


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
        self.kind = kind
        self.memory = Memory()
        self.memory.rom[at : at + len(code)] = code
        self.ports: list[tuple[int, bytes]] = []
        self.mmio: list[tuple[int, bytes]] = []
        self.answers: dict[int, int] = {}
        self.results: list[tuple[int, int]] = []
        self.watched: dict[int, Callable[[], None]] = {}
        supervisor: Any = SimpleNamespace(
            memory=self.memory,
            profile=resolve(profile),
            process_id=1,
            directory=str(directory),
            machines=[],
            vcpu_of_thread={},
            answer=self._answer,
            serve_until=self._serve_until,
            fetch=self._fetch,
            watch=self.watched.__setitem__,
            unwatch=self.watched.__delitem__,
        )
        self.vm = Vm(supervisor, 0)
        self.vm.slots = {0: (0, RAM_SIZE, HOST, 0), 1: (ROM, ROM_SIZE, HOST + ROM, 0)}
        self.vm.in_kernel_lapic = True
        if kind != "plain":
            sev: Any = SimpleNamespace(es=kind == "es", ghcb_version=2, memory_key=lambda: KEY)
            self.vm.sev = sev
            self.memory.rom[:] = encryption.encrypt(KEY, HOST + ROM, bytes(self.memory.rom))
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

    def put(self, address: int, data: bytes) -> None:
        """Into the VMM's memory, encrypted if the guest's is: whole pages, as LAUNCH_UPDATE_DATA."""
        data = data.ljust(-(-len(data) // 0x1000) * 0x1000, b"\0")
        if self.kind != "plain":
            data = encryption.encrypt(KEY, HOST + address, data)
        self.memory.ram[address : address + len(data)] = data

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

    def _fetch(self, _: Any, numbers: list[int], then: Callable[[list[int]], int]) -> int:
        """The VMM is this process."""
        return then([os.dup(number) if number >= 0 else -errno.EBADF for number in numbers])

    def hear(self) -> None:
        """What the supervisor does when a descriptor that it watches can be read."""
        for descriptor, ready in list(self.watched.items()):
            if select.select([descriptor], [], [], 0)[0]:
                ready()

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


def long_mode(
    code: bytes,
    kind: str = "es",
    *,
    handlers: dict[int, bytes] | None = None,
    prepare: Callable[[Board], None] = lambda _: None,
    user: bool = False,
    flags: int = 2,
    **options: Any,
) -> Board:
    """A board whose vCPUs start at 0x8000 in long mode; vCPU n has RDI = n and a stack of its own.

    :param handlers: machine code of the handlers, by vector.
    :param user: start at CPL 3.
    """
    board = Board(b"", kind, registers=lambda vcpu: _set_long_mode(vcpu, user, flags), **options)
    board.put(0x8000, code)
    table, text = bytearray(0x1000), bytearray(0x1000)
    for index, (vector, handler) in enumerate((handlers or {}).items()):
        at = HANDLERS + 0x100 * index
        text[0x100 * index : 0x100 * index + len(handler)] = handler
        gate = at & 0xFFFF | CODE64 << 16 | 0x8E00 << 32 | (at >> 16) << 48
        table[16 * vector : 16 * vector + 8] = gate.to_bytes(8, "little")
    board.put(HANDLERS, bytes(text))
    board.put(_IDT, bytes(table))
    descriptors = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00AFFB000000FFFF, 0x00CFF3000000FFFF)
    board.put(_GDT, b"".join(value.to_bytes(8, "little") for value in descriptors))
    board.put(_TSS, bytes(4) + STACK.to_bytes(8, "little"))
    private = C_BIT if kind != "plain" else 0
    tables = [_PML4 + 0x1007 | private, _PML4 + 0x2007 | private, _PML4 + 0x3007 | private]
    pages = [0x87 | private, 0x200087, 0x87, *(0x87 + 0x200000 * n for n in range(3, 512))]
    last = 0xFEC00087  # the 2 MiB with the local APICs' page
    words = [[tables[0]], [tables[1], 0, 0, tables[2]], pages, [0] * 502 + [last, last + 0x200000]]
    for index, row in enumerate(words):
        board.put(_PML4 + 0x1000 * index, b"".join(word.to_bytes(8, "little") for word in row))
    prepare(board)
    return board


def map_at(address: int, gpa: int) -> bytes:
    """mov rax, entry; mov [its place], rax: two MiB of the first GiB that have not been used yet."""
    entry, place = gpa | 0x87, TABLE + (address >> 21) * 8
    code = b"\x48\xb8" + entry.to_bytes(8, "little")
    return code + b"\x48\x89\x04\x25" + place.to_bytes(4, "little")


def _set_long_mode(vcpu: Vcpu, user: bool, flags: int) -> None:
    selectors = (USER_CODE, USER_DATA) if user else (CODE64, DATA)
    dpl = 3 if user else 0
    code = {"selector": selectors[0], "limit": 0xFFFFFFFF, "type": 11, "s": 1, "present": 1, "l": 1, "g": 1}
    data = {"selector": selectors[1], "limit": 0xFFFFFFFF, "type": 3, "s": 1, "present": 1, "db": 1, "g": 1}
    fields = kvm.SREGS.decode(vcpu.sregs)
    fields.update(
        cs={**code, "dpl": dpl},
        **{name: {**data, "dpl": dpl} for name in ("ds", "es", "fs", "gs", "ss")},
        gdt={"base": _GDT, "limit": 0xFFF},
        idt={"base": _IDT, "limit": 0xFFF},
        tr={"base": _TSS, "limit": 0x67, "type": 11, "present": 1},
        cr0=0x80000011,
        cr3=_PML4 | (C_BIT if vcpu.vm.sev is not None else 0),
        cr4=0x620,
        efer=0x500,
    )
    vcpu.sregs = kvm.SREGS.encode(**fields)
    number = vcpu.identifier
    vcpu.regs = kvm.REGS.encode(rip=0x8000, rflags=flags, rsp=STACK - 0x200 * number, rdi=number)
