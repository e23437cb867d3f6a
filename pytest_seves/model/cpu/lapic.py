# SPDX-License-Identifier: GPL-2.0-or-later
"""A local APIC, as KVM emulates it: arch/x86/kvm/lapic.c.

Registers are named by their offset in the xAPIC page; an x2APIC register is MSR 0x800 + offset / 16.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_LINT0 = 0x350
LVT_TIMER, LVT_LAST, TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE = 0x320, 0x370, 0x380, 0x390, 0x3E0
SELF_IPI = 0x3F0

BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11

FIXED, LOWEST, SMI, NMI, INIT, STARTUP = 0, 1, 2, 4, 5, 6

_MASKED = 1 << 16
_EXTERNAL = 7 << 8
_PAGE = 1024
_ENABLED = 1 << 8
_LOGICAL = 1 << 11
_LEVEL_ASSERT = 1 << 14
_ONE_SHOT, _PERIODIC, _DEADLINE = 0, 1, 2


class Ipi(NamedTuple):
    """An interrupt command. `shorthand` 1 is self, 2 all, 3 all but self."""

    mode: int
    vector: int
    shorthand: int
    destination: int
    logical: bool
    assert_level: bool


class Lapic:
    """One vCPU's.

    :ivar base: the APIC base register.
    :ivar deadline_ns: when its timer fires, in guest time; None while it is not armed.
    """

    def __init__(self, identifier: int, *, bootstrap: bool) -> None:
        self.identifier = identifier
        self.base = 0xFEE00000 | BASE_ENABLE | (BASE_BSP if bootstrap else 0)
        self.reset()

    def reset(self) -> None:
        """The state after INIT."""
        self.registers = {SVR: 0xFF, DFR: 0xFFFFFFFF, VERSION: 0x50014}
        self.registers.update(dict.fromkeys(range(LVT_TIMER, LVT_LAST + 1, 0x10), _MASKED))
        if self.base & BASE_BSP:
            self.registers[LVT_LINT0] = _EXTERNAL  # KVM_X86_QUIRK_LINT0_REENABLED
        self.requested = 0
        self.in_service = 0
        self.level = 0
        self.nmi = False
        self.deadline_ns: int | None = None
        self.tsc_deadline = 0
        self._period_ns = 0

    @property
    def x2apic(self) -> bool:
        """Whether registers are MSRs."""
        return bool(self.base & BASE_X2APIC)

    @property
    def highest_in_service(self) -> int:
        """The vector that the next EOI ends; 0 for none."""
        return _highest(self.in_service)

    @property
    def processor_priority(self) -> int:
        """PPR."""
        task, service = self.registers.get(TPR, 0) & 0xFF, _highest(self.in_service) & 0xF0
        return task if task & 0xF0 >= service else service

    @property
    def task_priority_class(self) -> int:
        """TPR as CR8 has it."""
        return self.registers.get(TPR, 0) >> 4 & 0xF

    @task_priority_class.setter
    def task_priority_class(self, value: int) -> None:
        if value != self.task_priority_class:
            self.registers[TPR] = value << 4

    @property
    def pending(self) -> int | None:
        """The vector that the CPU would take now."""
        if not self.requested or not self.registers[SVR] & _ENABLED:
            return None
        vector = _highest(self.requested)
        return vector if vector >> 4 > self.processor_priority >> 4 else None

    @property
    def enabled(self) -> bool:
        """By software, in SVR."""
        return bool(self.registers[SVR] & _ENABLED)

    @property
    def accepts_external(self) -> bool:
        """The PICs' interrupts come through: by LINT0, or past an APIC that is off."""
        if not self.base & BASE_ENABLE:
            return True
        return self.registers[LVT_LINT0] & (_MASKED | _EXTERNAL) == _EXTERNAL

    def accept(self, vector: int, *, level: bool = False) -> bool:
        """An interrupt arrives; whether it is taken."""
        if not self.enabled:
            return False
        self.requested |= 1 << vector
        self.level = self.level & ~(1 << vector) | (1 << vector if level else 0)
        return True

    def acknowledge(self, vector: int) -> None:
        """The CPU takes the interrupt."""
        self.requested &= ~(1 << vector)
        self.in_service |= 1 << vector

    def tick(self, now_ns: int) -> None:
        """Guest time has come to `now_ns`."""
        if self.deadline_ns is None or now_ns < self.deadline_ns:
            return
        entry = self.registers[LVT_TIMER]
        if entry >> 17 & 3 == _PERIODIC and self._period_ns:
            # A guest slower than its own timer loses ticks: KVM, too, delivers one for those that passed.
            missed = (now_ns - self.deadline_ns) // self._period_ns
            self.deadline_ns += (missed + 1) * self._period_ns
        else:
            self.deadline_ns = None
            self.tsc_deadline = 0
        if not entry & _MASKED:
            self.accept(entry & 0xFF)

    def addressed(self, destination: int, logical: bool) -> bool:
        """Whether an interrupt's destination is this APIC."""
        everyone = 0xFFFFFFFF if self.x2apic else 0xFF
        if destination in (everyone, 0xFFFFFFFF):
            return True
        if not logical:
            return destination == (self.identifier if self.x2apic else self.identifier & 0xFF)
        if self.x2apic:
            mine = self._logical_id
            return destination >> 16 == mine >> 16 and bool(destination & mine & 0xFFFF)
        mine = self.registers.get(LDR, 0) >> 24
        if self.registers[DFR] >> 28 == 0xF:
            return bool(destination & mine)
        return destination >> 4 == mine >> 4 and bool(destination & mine & 0xF)

    @property
    def _logical_id(self) -> int:
        return self.identifier >> 4 << 16 | 1 << (self.identifier & 0xF)

    def read(self, register: int, now_ns: int) -> int:
        """A register's 32 bits."""
        for start, bits in ((ISR, self.in_service), (TMR, self.level), (IRR, self.requested)):
            if start <= register < start + 0x80:
                return bits >> (register - start) // 0x10 * 32 & 0xFFFFFFFF
        if register == ID:
            return self.identifier if self.x2apic else (self.identifier & 0xFF) << 24
        if register == LDR and self.x2apic:
            return self._logical_id
        if register == PPR:
            return self.processor_priority
        if register == TIMER_CURRENT:
            left = 0 if self.deadline_ns is None else max(0, self.deadline_ns - now_ns)
            return left // self._divisor & 0xFFFFFFFF
        return self.registers.get(register, 0)

    def write(self, register: int, value: int, now_ns: int) -> Ipi | None:
        """A register is written; the interrupt command to carry out, if it was one."""
        if register == EOI:
            if self.in_service:
                self.in_service ^= 1 << _highest(self.in_service)
            return None
        if register == SELF_IPI and self.x2apic:
            return Ipi(FIXED, value & 0xFF, 1, 0, False, True)
        if register in (ID, VERSION, PPR, TIMER_CURRENT) or ISR <= register < ESR:
            return None
        self.registers[register] = value & 0xFFFFFFFF
        if register == TIMER_INITIAL:
            self._arm(value & 0xFFFFFFFF, now_ns)
        elif register == LVT_TIMER and value >> 17 & 3 == _DEADLINE:
            self.deadline_ns = None
        elif register == ICR:
            destination = value >> 32 if self.x2apic else self.registers.get(ICR2, 0) >> 24
            return Ipi(
                value >> 8 & 7,
                value & 0xFF,
                value >> 18 & 3,
                destination,
                bool(value & _LOGICAL),
                bool(value & _LEVEL_ASSERT),
            )
        return None

    def set_tsc_deadline(self, deadline: int, deadline_ns: int) -> None:
        """IA32_TSC_DEADLINE; 0 disarms."""
        if self.registers[LVT_TIMER] >> 17 & 3 == _DEADLINE:
            self.tsc_deadline = deadline
            self.deadline_ns = deadline_ns if deadline else None

    def state(self, now_ns: int) -> bytes:
        """The page of struct kvm_lapic_state."""
        page = bytearray(_PAGE)
        for register in range(0, _PAGE, 0x10):
            struct.pack_into("<I", page, register, self.read(register, now_ns))
        return bytes(page)

    def restore(self, page: bytes, now_ns: int) -> None:
        """Take such a page over; the timer goes on from its current count."""
        for register in range(0, _PAGE, 0x10):
            value = int.from_bytes(page[register : register + 4], "little")
            if register in self.registers or value:
                self.registers[register] = value
        words = {at: [self.registers.pop(at + 0x10 * n, 0) for n in range(8)] for at in (ISR, TMR, IRR)}
        bits = {at: sum(word << 32 * n for n, word in enumerate(row)) for at, row in words.items()}
        self.in_service, self.level, self.requested = bits[ISR], bits[TMR], bits[IRR]
        left = self.registers.pop(TIMER_CURRENT, 0)
        self._arm(self.registers.get(TIMER_INITIAL, 0), now_ns)
        if self.deadline_ns is not None and left:
            self.deadline_ns = now_ns + left * self._divisor

    def _arm(self, count: int, now_ns: int) -> None:
        if self.registers[LVT_TIMER] >> 17 & 3 == _DEADLINE:
            return
        self._period_ns = count * self._divisor
        self.deadline_ns = now_ns + self._period_ns if count else None

    @property
    def _divisor(self) -> int:
        value = self.registers.get(TIMER_DIVIDE, 0)
        code = value & 3 | value >> 1 & 4
        return 1 if code == 7 else 2 << code


def _highest(bits: int) -> int:
    return bits.bit_length() - 1 if bits else 0
