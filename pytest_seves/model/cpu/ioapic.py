# SPDX-License-Identifier: GPL-2.0-or-later
"""The IOAPIC as KVM has it in the kernel: edge and level, remote IRR, and its state.

Source: Linux arch/x86/kvm/ioapic.c; struct kvm_ioapic_state; Intel 82093AA.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

BASE = 0xFEC00000
PINS = 24
_ID, _VERSION, _ARBITRATION, _REDIRECTION = 0, 1, 2, 0x10
_SELECT, _WINDOW, _EOI = 0x00, 0x10, 0x40
_MASKED, _LEVEL, _REMOTE_IRR, _PENDING, _LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 12, 1 << 11
_READ_ONLY = _REMOTE_IRR | _PENDING
_STATE = struct.Struct("<QIIII24Q")


class Message(NamedTuple):
    """An interrupt on its way to local APICs."""

    vector: int
    mode: int
    destination: int
    logical: bool
    level: bool


class Ioapic:
    """One VM's.

    :param send: what delivers a message; how many local APICs have taken it.
    :param acknowledged: told a pin at the EOI of its vector.
    :param resample: asks whether a level is still up, for it to come anew; False if nobody can be asked.
    """

    def __init__(
        self,
        send: Callable[[Message], int],
        acknowledged: Callable[[int], None] = lambda pin: None,
        resample: Callable[[int], bool] = lambda pin: False,
    ) -> None:
        self._send = send
        self._acknowledged = acknowledged
        self._resample = resample
        self._select = 0
        self._identifier = 0
        self._redirection = [_MASKED] * PINS
        self._lines = 0

    # Registers

    def read(self, register: int) -> int:
        """A register of the page, by its offset."""
        if register == _SELECT:
            return self._select
        if register != _WINDOW:
            return 0
        if self._select == _VERSION:
            return (PINS - 1) << 16 | 0x11
        if self._select in (_ID, _ARBITRATION):
            return self._identifier << 24
        pin, high = divmod(self._select - _REDIRECTION, 2)
        return self._redirection[pin] >> 32 * high & 0xFFFFFFFF if 0 <= pin < PINS else 0

    def write(self, register: int, value: int) -> None:
        """A register of the page; the one for EOI is not there, as the version is below 0x20."""
        if register == _SELECT:
            self._select = value & 0xFF
        elif register == _WINDOW and self._select == _ID:
            self._identifier = value >> 24 & 0xF
        elif register == _WINDOW:
            pin, high = divmod(self._select - _REDIRECTION, 2)
            if 0 <= pin < PINS:
                self._write_entry(pin, high, value)

    def _write_entry(self, pin: int, high: int, value: int) -> None:
        old = self._redirection[pin]
        if high:
            self._redirection[pin] = old & 0xFFFFFFFF | value << 32
            return
        entry = old & 0xFFFFFFFF << 32 | value & ~_READ_ONLY & 0xFFFFFFFF | old & _READ_ONLY
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR  # software clears it by way of edge mode
        self._redirection[pin] = entry
        if entry & _LEVEL and not entry & (_MASKED | _REMOTE_IRR) and self._lines >> pin & 1:
            if self._resample(pin):  # fef8f2b90edb (6.4): it may have been acknowledged while masked
                self._lines &= ~(1 << pin)
            else:
                self._deliver(pin)

    # Lines

    def set_line(self, pin: int, level: bool) -> int:
        """ioapic_set_irq(): 1 if it was taken, 0 if it merged with one under way, -1 if it is masked."""
        if not level:
            self._lines &= ~(1 << pin)
            return 1
        edge = not self._redirection[pin] & _LEVEL
        if edge and self._lines >> pin & 1:
            return 0
        self._lines |= 1 << pin
        return self._deliver(pin)

    def _deliver(self, pin: int) -> int:
        entry = self._redirection[pin]
        if entry & _MASKED:
            return -1
        level = bool(entry & _LEVEL)
        if level and entry & _REMOTE_IRR:
            return 0
        vector, mode = entry & 0xFF, entry >> 8 & 7
        taken = self._send(Message(vector, mode, entry >> 56, bool(entry & _LOGICAL), level))
        if level and taken:
            self._redirection[pin] |= _REMOTE_IRR
        return int(taken > 0) or -1

    def end_of_interrupt(self, vector: int, *, level: bool = True) -> None:
        """A local APIC's EOI: a level interrupt whose line is still up comes again."""
        for pin, entry in enumerate(self._redirection):
            if entry & 0xFF != vector:
                continue
            self._acknowledged(pin)
            if level and entry & _LEVEL and entry & _REMOTE_IRR:
                self._redirection[pin] &= ~_REMOTE_IRR
                if self._lines >> pin & 1:
                    self._deliver(pin)

    # State

    def state(self) -> bytes:
        """struct kvm_ioapic_state."""
        return _STATE.pack(BASE, self._select, self._identifier, self._lines, 0, *self._redirection)

    def restore(self, raw: bytes) -> None:
        """Take a struct kvm_ioapic_state over; lines that are up are delivered."""
        _, self._select, self._identifier, lines, _, *entries = _STATE.unpack_from(raw)
        self._redirection = list(entries)
        self._lines = 0
        for pin in range(PINS):
            if lines >> pin & 1:
                self.set_line(pin, True)
