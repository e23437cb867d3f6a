# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM has in the kernel beside the CPUs, as a guest reaches it: by ports, by memory, by interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ioapic, lapic, pic, pit
from .lapic import Ipi

if TYPE_CHECKING:
    from .ioapic import Message
    from .machine import Machine

#: Guest time of an access that leaves KVM, about what it takes.
TRIP_NS = 50_000
_APIC_BASE_MASK = 0xFFFFF000
#: ACPI's PM timer of the machines pc and q35. KVM leaves it to the VMM, which counts the time on the wall.
_PM_TIMER_PORTS = frozenset({0xB008, 0x608})
_PM_TIMER_HZ = 3_579_545
#: A guest that does nothing but read it waits: each further read takes twice as long, up to this.
_LONGEST_READ_NS = 1_600_000


class Devices:
    """Those of one VM."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.irqchip = machine.vm.irqchip
        self.irqchip.deliver = self.deliver
        self._read_ns = TRIP_NS

    # Ports

    def port_read(self, port: int, size: int, count: int) -> bytes | None:
        """None for a port that is the VMM's."""
        now_ns = self._machine.now_ns
        if port in _PM_TIMER_PORTS and size == 4 and count == 1:
            return self._read_pm_timer()
        self._read_ns = TRIP_NS
        if port in pic.PORTS and self._machine.vm.in_kernel_irqchip:
            return b"".join(self.irqchip.pics.read(port).to_bytes(size, "little") for _ in range(count))
        if port in pit.PORTS and self._machine.vm.in_kernel_pit:
            return b"".join(
                self.irqchip.pit.read(port, now_ns).to_bytes(size, "little") for _ in range(count)
            )
        return None

    def _read_pm_timer(self) -> bytes:
        self._machine.now_ns += self._read_ns
        self._read_ns = min(2 * self._read_ns, _LONGEST_READ_NS)
        ticks = self._machine.now_ns * _PM_TIMER_HZ // 1_000_000_000
        return (ticks & 0xFFFFFF).to_bytes(4, "little")

    def port_write(self, port: int, size: int, data: bytes) -> bool:
        """False for a port that is the VMM's."""
        self._read_ns = TRIP_NS
        if port in pic.PORTS and self._machine.vm.in_kernel_irqchip:
            for value in data[::size]:
                self.irqchip.pics.write(port, value)
            return True
        if port in pit.PORTS and self._machine.vm.in_kernel_pit:
            for value in data[::size]:
                self.irqchip.pit.write(port, value, self._machine.now_ns)
            return True
        return False

    # Memory-mapped registers

    def mmio_read(self, gpa: int, size: int) -> bytes | None:
        """None for an address that is the VMM's."""
        self._read_ns = TRIP_NS
        apic = self._apic(gpa)
        if apic is not None:
            value = apic.read(gpa & 0xFF0, self._machine.now_ns)
        elif self._is_ioapic(gpa):
            value = self.irqchip.ioapic.read(gpa & 0xFF)
        else:
            return None
        return value.to_bytes(4, "little").ljust(size, b"\0")[:size]

    def mmio_write(self, gpa: int, data: bytes) -> bool:
        """False for an address that is the VMM's."""
        value = int.from_bytes(data[:4], "little")
        if self._apic(gpa) is not None:
            self._machine.current.write_lapic(gpa & 0xFF0, value)
            return True
        if self._is_ioapic(gpa):
            self.irqchip.ioapic.write(gpa & 0xFF, value)
            return True
        return False

    def _apic(self, gpa: int) -> lapic.Lapic | None:
        apic = self._machine.current.lapic
        if not self._machine.vm.in_kernel_lapic or apic.x2apic or not apic.base & lapic.BASE_ENABLE:
            return None
        return apic if gpa & -0x1000 == apic.base & _APIC_BASE_MASK else None

    def _is_ioapic(self, gpa: int) -> bool:
        return self._machine.vm.in_kernel_irqchip and gpa & -0x100 == ioapic.BASE

    # Interrupts

    def deliver(self, message: Message) -> int:
        """To every local APIC that is addressed, of lowest priority to one; how many took it."""
        addressed = [
            processor
            for processor in self._machine.processors.values()
            if processor.lapic.addressed(message.destination, message.logical)
        ]
        if message.mode == lapic.LOWEST:
            enabled = [processor for processor in addressed if processor.lapic.enabled]
            addressed = sorted(enabled, key=lambda processor: processor.lapic.processor_priority)[:1]
        ipi = Ipi(message.mode, message.vector, 0, message.destination, message.logical, True)
        return sum(processor.receive(ipi, level=message.level) for processor in addressed)

    @property
    def external_pending(self) -> bool:
        """The PICs ask for an interrupt."""
        return self._machine.vm.in_kernel_irqchip and self.irqchip.pics.pending
