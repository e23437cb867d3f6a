# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM has in the kernel beside the CPUs: local APICs, and with a full irqchip PIC, PIT and IOAPIC.

Source: Linux arch/x86/kvm/{ioapic,i8259,i8254,irq_comm}.c. PIC and PIT keep what they are told and interrupt
nobody; the IOAPIC delivers edge and level interrupts to the local APICs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import lapic

if TYPE_CHECKING:
    from .machine import Machine

_APIC_BASE_MASK = 0xFFFFF000
_IOAPIC = 0xFEC00000
_PINS = 24
_MASKED = 1 << 16
_PIC_PORTS = frozenset({0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1})
_PIT_PORTS = frozenset({0x40, 0x41, 0x42, 0x43, 0x61})
_PIT_HZ = 1_193_182


class Devices:
    """Those of one VM."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kept: dict[int, int] = {}
        self._index = 0
        self._redirection = [_MASKED] * _PINS
        self._lines = 0

    # Ports

    def port_read(self, port: int, size: int, count: int) -> bytes | None:
        """None for a port that is the VMM's."""
        if not self._ours(port):
            return None
        value = self._kept.get(port, 0)
        if port in (0x40, 0x41, 0x42):
            value = -self._machine.now_ns * _PIT_HZ // 1_000_000_000 & 0xFF
        elif port == 0x61:
            value = 0x20 | value & 0xF
        return (value & 0xFF).to_bytes(size, "little") * count

    def port_write(self, port: int, size: int, data: bytes) -> bool:
        """False for a port that is the VMM's."""
        if not self._ours(port):
            return False
        self._kept[port] = data[-size]
        return True

    def _ours(self, port: int) -> bool:
        vm = self._machine.vm
        return (port in _PIC_PORTS and vm.in_kernel_irqchip) or (port in _PIT_PORTS and vm.in_kernel_pit)

    # Memory-mapped registers

    def mmio_read(self, gpa: int, size: int) -> bytes | None:
        """None for an address that is the VMM's."""
        apic = self._apic(gpa)
        if apic is not None:
            return (
                apic.read(gpa & 0xFF0, self._machine.now_ns).to_bytes(4, "little").ljust(size, b"\0")[:size]
            )
        if self._is_ioapic(gpa):
            return self._read_ioapic(gpa & 0xFF).to_bytes(4, "little").ljust(size, b"\0")[:size]
        return None

    def mmio_write(self, gpa: int, data: bytes) -> bool:
        """False for an address that is the VMM's."""
        value = int.from_bytes(data[:4], "little")
        if self._apic(gpa) is not None:
            self._machine.current.write_lapic(gpa & 0xFF0, value)
            return True
        if self._is_ioapic(gpa):
            self._write_ioapic(gpa & 0xFF, value)
            return True
        return False

    def _apic(self, gpa: int) -> lapic.Lapic | None:
        apic = self._machine.current.lapic
        if not self._machine.vm.in_kernel_lapic or apic.x2apic or not apic.base & lapic.BASE_ENABLE:
            return None
        return apic if gpa & -0x1000 == apic.base & _APIC_BASE_MASK else None

    def _is_ioapic(self, gpa: int) -> bool:
        return self._machine.vm.in_kernel_irqchip and gpa & -0x100 == _IOAPIC

    # IOAPIC

    def _read_ioapic(self, register: int) -> int:
        if register == 0:
            return self._index
        if register != 0x10:
            return 0
        if self._index == 1:
            return (_PINS - 1) << 16 | 0x11
        pin, high = divmod(self._index - 0x10, 2)
        if not 0 <= pin < _PINS:
            return 0
        return self._redirection[pin] >> 32 * high & 0xFFFFFFFF

    def _write_ioapic(self, register: int, value: int) -> None:
        if register == 0:
            self._index = value & 0xFF
            return
        pin, high = divmod(self._index - 0x10, 2)
        if register != 0x10 or not 0 <= pin < _PINS:
            return
        keep = self._redirection[pin] & (0xFFFFFFFF if high else 0xFFFFFFFF << 32)
        self._redirection[pin] = keep | value << 32 * high
        if self._lines >> pin & 1 and self._redirection[pin] >> 15 & 1:
            self._deliver(pin)

    def set_line(self, pin: int, level: bool) -> None:
        """KVM_IRQ_LINE."""
        if not 0 <= pin < _PINS:
            return
        before = self._lines >> pin & 1
        self._lines = self._lines & ~(1 << pin) | level << pin
        if level and not before:
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        entry = self._redirection[pin]
        if not entry & _MASKED:
            level = bool(entry >> 15 & 1)
            self.interrupt(entry & 0xFF, entry >> 56, logical=bool(entry >> 11 & 1), level=level)

    def end_of_interrupt(self, vector: int) -> None:
        """A level interrupt whose line is still up comes again."""
        for pin, entry in enumerate(self._redirection):
            if entry & 0xFF == vector and entry >> 15 & 1 and self._lines >> pin & 1:
                self._deliver(pin)

    def message(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI: how many APICs took it."""
        destination = address >> 12 & 0xFF | address >> 32 & 0xFFFFFF00
        return self.interrupt(data & 0xFF, destination, logical=bool(address >> 2 & 1), level=False)

    def interrupt(self, vector: int, destination: int, *, logical: bool, level: bool) -> int:
        """To every local APIC that is addressed."""
        taken = 0
        for processor in self._machine.processors.values():
            if processor.lapic.addressed(destination, logical):
                processor.lapic.accept(vector, level=level)
                taken += 1
        return taken
