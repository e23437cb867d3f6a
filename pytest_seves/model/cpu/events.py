# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways into a kernel that unicorn leaves to its user: exceptions and interrupts by the IDT, and SYSCALL.

Source: AMD64 Architecture Programmer's Manual volume 2 (24593), chapter 8 (exceptions, interrupt gates, stack
switches, double faults), 14 (real mode) and 6.1.1 (SYSCALL and its MSRs).
"""

from __future__ import annotations

import struct

from .engine import Engine
from .layout import (
    CS,
    DS,
    EFER_SCE,
    ES,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_INHIBIT_IRQ,
    HF_LMA,
    HF_SS32,
    R11,
    RCX,
    RSP,
    SS,
    State,
)
from .virtual_memory import PageFault, VirtualMemory

INVALID_OPCODE = 6
DOUBLE_FAULT, NOT_PRESENT, STACK, GENERAL_PROTECTION, PAGE_FAULT = 8, 11, 12, 13, 14
VMM_COMMUNICATION = 29
#: Exceptions that push an error code.
WITH_ERROR = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})

_FLAGS_TF, FLAGS_IF, _FLAGS_NT, _FLAGS_RF, _FLAGS_VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_CLEARED = _FLAGS_TF | _FLAGS_NT | _FLAGS_RF | _FLAGS_VM
#: What IRET takes from the stack: all but VM, VIF and VIP.
_RETURNED = 0x257FD5
_INTERRUPT_GATES = (0xE, 0x6)
_GATES = (0xE, 0xF)
_PRESENT, _CODE, _CONFORMING = 1 << 15, 1 << 11, 1 << 10
_BIG, _LONG, _GRANULAR = 1 << 22, 1 << 21, 1 << 23
#: What SYSCALL loads whatever the GDT says, as descriptors' second words: present, accessed, up to 4 GiB.
_KERNEL_CODE, _KERNEL_DATA = 0x00AF9B00, 0x00CF9300
_STAR, _LSTAR, _CSTAR, _SF_MASK = range(0xC0000081, 0xC0000085)
_SYSCALL_SIZE = 2


_FRAME, _FRAME_WITH_ERROR = struct.Struct("<5Q"), struct.Struct("<6Q")
_GATE = {8: struct.Struct("<Q"), 16: struct.Struct("<2Q")}


class TripleFault(Exception):
    """An exception while a double fault is delivered: SHUTDOWN."""


class _Fault(Exception):
    def __init__(self, vector: int, error: int) -> None:
        super().__init__(vector)
        self.vector = vector
        self.error = error


class Events:
    """Event delivery on the current vCPU."""

    def __init__(self, engine: Engine, memory: VirtualMemory) -> None:
        self._engine = engine
        self._state: State = engine.state
        self._memory = memory
        self._registers = engine.state.regs
        self._control = engine.state.cr
        self._code_segment, self._stack_segment = engine.state.segs[CS], engine.state.segs[SS]
        self._idt, self._gdt = engine.state.idt, engine.state.gdt

    @property
    def flags(self) -> int:
        """RFLAGS."""
        return self._engine.flags

    @flags.setter
    def flags(self, value: int) -> None:
        self._engine.flags = value

    @property
    def interruptible(self) -> bool:
        """IF is set and the instruction before was no STI or MOV SS."""
        return bool(self._state.eflags & FLAGS_IF) and not self._state.hflags & HF_INHIBIT_IRQ

    def deliver(self, vector: int, error: int | None = None, *, software: bool = False) -> None:
        """Make the handler of `vector` the next instruction; RIP is what it returns to.

        :raise TripleFault: neither it nor the double fault could be delivered.
        """
        while True:
            try:
                self._deliver(vector, error, software)
            except (PageFault, _Fault) as fault:
                software = False
                vector, error = self._next(vector, fault)
            else:
                self._state.hflags &= ~HF_INHIBIT_IRQ
                return

    def _next(self, vector: int, fault: PageFault | _Fault) -> tuple[int, int]:
        """What an exception during the delivery of another makes of both."""
        if vector == DOUBLE_FAULT:
            raise TripleFault
        second = fault.vector if isinstance(fault, _Fault) else PAGE_FAULT
        if vector == PAGE_FAULT or (vector in _CONTRIBUTORY and second in _CONTRIBUTORY):
            return DOUBLE_FAULT, 0
        if isinstance(fault, PageFault):
            self._state.cr[2] = fault.address
        return second, fault.error

    def _deliver(self, vector: int, error: int | None, software: bool) -> None:
        if not self._control[0] & 1:
            self._real(vector)
        elif self._state.hflags & HF_LMA:
            self._long(vector, error, software)
        else:
            self._protected(vector, error, software)

    def _real(self, vector: int) -> None:
        state, flags = self._state, self.flags
        offset, selector = struct.unpack("<HH", self._memory.read(state.idt.base + 4 * vector, 4))
        mask = 0xFFFFFFFF if state.hflags & HF_SS32 else 0xFFFF
        stack = state.regs[RSP] - 6 & mask
        frame = struct.pack("<3H", state.eip & 0xFFFF, state.segs[CS].selector & 0xFFFF, flags & 0xFFFF)
        self._memory.write(state.segs[SS].base + stack, frame)
        state.regs[RSP] = state.regs[RSP] & ~mask | stack
        state.segs[CS].selector, state.segs[CS].base, state.eip = selector, selector << 4, offset
        self.flags = flags & ~(FLAGS_IF | _FLAGS_TF)

    def return_real(self, size: int) -> None:
        """IRET in real mode by the 32-bit stack that SS has kept; its operands have `size` bytes."""
        state = self._state
        stack, base = state.regs[RSP], state.segs[SS].base
        offset, selector, flags = (
            self._memory.read_number(base + stack + size * index, size) for index in range(3)
        )
        state.regs[RSP], state.eip = stack + 3 * size & 0xFFFFFFFF, offset
        state.segs[CS].selector, state.segs[CS].base = selector & 0xFFFF, (selector & 0xFFFF) << 4
        changed = _RETURNED & (1 << 8 * size) - 1
        self.flags = self.flags & ~changed | flags & changed
        state.hflags &= ~HF_INHIBIT_IRQ

    def system_call(self) -> None:
        """SYSCALL, behind which RIP is already.

        :raise TripleFault: EFER.SCE is clear, and the #UD could not be delivered.
        """
        state, msr, long = self._state, self._engine.uc.msr_read, bool(self._state.hflags & HF_LMA)
        if not state.efer & EFER_SCE:
            state.eip -= _SYSCALL_SIZE
            return self.deliver(INVALID_OPCODE)
        star, flags = msr(_STAR), self.flags & ~_FLAGS_RF
        state.regs[RCX] = state.eip
        if long:
            state.regs[R11] = flags
            target, cleared = msr(_LSTAR if state.hflags & HF_CS64 else _CSTAR), msr(_SF_MASK)
        else:
            target, cleared = star & 0xFFFFFFFF, FLAGS_IF | _FLAGS_VM
        selector = star >> 32 & 0xFFFC
        code = _KERNEL_CODE if long else _KERNEL_CODE & ~_LONG | _BIG
        load_segment(state, CS, selector, 0, 0xFFFFFFFF, code)
        load_segment(state, SS, selector + 8, 0, 0xFFFFFFFF, _KERNEL_DATA)
        state.hflags &= ~(HF_CPL | HF_INHIBIT_IRQ)
        self.flags = flags & ~cleared
        state.eip = target
        return None

    def _long(self, vector: int, error: int | None, software: bool) -> None:
        state, flags, registers = self._state, self.flags, self._registers
        low, high = self._gate(vector, 16, software)
        offset = low & 0xFFFF | low >> 32 & 0xFFFF0000 | (high & 0xFFFFFFFF) << 32
        kind, ist = low >> 40 & 0xF, low >> 32 & 7
        selector, code = self._code(low >> 16 & 0xFFFF)
        cpl, new_cpl = state.hflags & HF_CPL, code >> 32 + 13 & 3
        if code >> 32 & _CONFORMING:
            new_cpl = cpl
        before = stack = registers[RSP]
        if ist:
            stack = self._memory.read_number(state.tr.base + 0x1C + 8 * ist, 8)
        elif new_cpl < cpl:
            stack = self._memory.read_number(state.tr.base + 4 + 8 * new_cpl, 8)
        frame = (
            state.eip,
            self._code_segment.selector & 0xFFFF,
            flags,
            before,
            self._stack_segment.selector & 0xFFFF,
        )
        data = _FRAME.pack(*frame) if error is None else _FRAME_WITH_ERROR.pack(error, *frame)
        stack = (stack & -16) - len(data) & (1 << 64) - 1
        self._memory.write(stack, data)
        if new_cpl < cpl:
            load_segment(state, SS, new_cpl, 0, 0, new_cpl << 13)
        registers[RSP] = stack
        self._enter(selector & ~3 | new_cpl, code, offset, new_cpl)
        # none of them is an arithmetic one, which the engine keeps elsewhere
        state.eflags &= ~(_CLEARED | (FLAGS_IF if kind in _INTERRUPT_GATES else 0))

    def _protected(self, vector: int, error: int | None, software: bool) -> None:
        state, flags = self._state, self.flags
        low, _ = self._gate(vector, 8, software)
        offset, kind = low & 0xFFFF | low >> 32 & 0xFFFF0000, low >> 40 & 0xF
        selector, code = self._code(low >> 16 & 0xFFFF)
        cpl, new_cpl = state.hflags & HF_CPL, code >> 32 + 13 & 3
        if code >> 32 & _CONFORMING:
            new_cpl = cpl
        frame = [flags & 0xFFFFFFFF, state.segs[CS].selector & 0xFFFF, state.eip & 0xFFFFFFFF]
        stack, base, inner = state.regs[RSP] & 0xFFFFFFFF, state.segs[SS].base, None
        if new_cpl < cpl:
            frame = [state.segs[SS].selector & 0xFFFF, stack, *frame]
            stack = self._memory.read_number(state.tr.base + 4 + 8 * new_cpl, 4)
            inner = self._memory.read_number(state.tr.base + 8 + 8 * new_cpl, 2)
            base = _base(self._descriptor(inner))
        if error is not None:
            frame.append(error)
        stack = stack - 4 * len(frame) & 0xFFFFFFFF
        self._memory.write(base + stack & 0xFFFFFFFF, struct.pack(f"<{len(frame)}I", *reversed(frame)))
        if inner is not None:
            descriptor = self._descriptor(inner)
            load_segment(state, SS, inner, base, _limit(descriptor), descriptor >> 32)
        state.regs[RSP] = stack
        self._enter(selector & ~3 | new_cpl, code, offset, new_cpl)
        self.flags = flags & ~(_CLEARED | (FLAGS_IF if kind in _INTERRUPT_GATES else 0))

    def _gate(self, vector: int, size: int, software: bool) -> tuple[int, int]:
        idt = self._idt
        if vector * size + size - 1 > idt.limit:
            raise _Fault(GENERAL_PROTECTION, vector * 8 + 2)
        words = _GATE[size].unpack(self._memory.read(idt.base + vector * size, size))
        low = words[0]
        if low >> 40 & 0x1F not in (_GATES if size == 16 else (*_GATES, 0x6, 0x7)):
            raise _Fault(GENERAL_PROTECTION, vector * 8 + 2)
        if software and (low >> 45 & 3) < self._state.hflags & HF_CPL:
            raise _Fault(GENERAL_PROTECTION, vector * 8 + 2)
        if not low >> 47 & 1:
            raise _Fault(NOT_PRESENT, vector * 8 + 2)
        return low, words[-1]

    def _code(self, selector: int) -> tuple[int, int]:
        if not selector & ~3:
            raise _Fault(GENERAL_PROTECTION, 0)
        descriptor = self._descriptor(selector)
        if not descriptor >> 32 & _CODE:
            raise _Fault(GENERAL_PROTECTION, selector & ~3)
        if not descriptor >> 32 & _PRESENT:
            raise _Fault(NOT_PRESENT, selector & ~3)
        return selector, descriptor

    def _descriptor(self, selector: int) -> int:
        table = self._state.ldt if selector & 4 else self._gdt
        if selector | 7 > table.limit:
            raise _Fault(GENERAL_PROTECTION, selector & ~3)
        return self._memory.read_number(table.base + (selector & ~7), 8)

    def _enter(self, selector: int, code: int, offset: int, cpl: int) -> None:
        state = self._state
        segment = self._code_segment
        if (segment.selector, segment.flags) != (selector, code >> 32) or not state.hflags & HF_CS64:
            load_segment(state, CS, selector, _base(code), _limit(code), code >> 32)
            state.hflags = state.hflags & ~HF_CPL | cpl
        state.eip = offset


def _base(descriptor: int) -> int:
    return descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000


def _limit(descriptor: int) -> int:
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    return limit << 12 | 0xFFF if descriptor >> 32 & _GRANULAR else limit


def load_segment(state: State, index: int, selector: int, base: int, limit: int, flags: int) -> None:
    """cpu_x86_load_seg_cache(): a segment register and the modes that follow from it."""
    segment = state.segs[index]
    segment.selector, segment.base, segment.limit, segment.flags = selector, base, limit, flags
    hflags = state.hflags
    if index == CS:
        hflags &= ~(HF_CS32 | HF_CS64)
        if hflags & HF_LMA and flags & _LONG:
            hflags |= HF_CS32 | HF_CS64
        elif flags & _BIG:
            hflags |= HF_CS32
    hflags &= ~(HF_SS32 | HF_ADDSEG)
    if hflags & HF_CS64:
        hflags |= HF_SS32
    else:
        hflags |= HF_SS32 if state.segs[SS].flags & _BIG else 0
        bases = state.segs[DS].base | state.segs[ES].base | state.segs[SS].base
        if not state.cr[0] & 1 or not hflags & HF_CS32 or bases:
            hflags |= HF_ADDSEG
    state.hflags = hflags
