# SPDX-License-Identifier: GPL-2.0-or-later
"""The local APIC by itself, and the IOAPIC before it."""

from __future__ import annotations

import pytest

from pytest_seves.model.cpu import lapic
from pytest_seves.model.cpu.lapic import Lapic
from pytest_seves.model.irqchip import message_of
from tests.model.cpu.board import Board


def enabled(identifier: int = 0, *, x2apic: bool = False) -> Lapic:
    """One that takes interrupts."""
    apic = Lapic(identifier, bootstrap=identifier == 0)
    apic.write(lapic.SVR, 0x1FF, 0)
    if x2apic:
        apic.base |= lapic.BASE_X2APIC
    return apic


def test_disabled_apic_takes_nothing() -> None:
    """Before software enables it, an interrupt is lost."""
    apic = Lapic(0, bootstrap=True)
    apic.accept(0x40)
    assert (apic.requested, apic.pending) == (0, None)


def test_priorities_decide() -> None:
    """The highest vector first; nothing of its class or below while in service; TPR holds classes back."""
    apic = enabled()
    for vector in (0x41, 0x52):
        apic.accept(vector)
    assert [apic.pending] == [0x52]
    apic.acknowledge(0x52)
    assert [apic.pending] == [None]
    apic.write(lapic.EOI, 0, 0)
    assert [apic.pending] == [0x41]
    apic.write(lapic.TPR, 0x40, 0)
    assert [apic.pending] == [None]
    assert apic.read(lapic.PPR, 0) == 0x40
    assert apic.read(lapic.IRR + 0x20, 0) == 1 << 1


@pytest.mark.parametrize(
    ("identifier", "x2apic", "destination", "logical", "hit"),
    [
        (3, False, 3, False, True),
        (3, False, 4, False, False),
        (3, False, 0xFF, False, True),
        (300, True, 300, False, True),
        (300, True, 300 & 0xFF, False, False),
        (300, True, 0xFFFFFFFF, False, True),
        (0x25, True, 0x2 << 16 | 1 << 5, True, True),
        (0x25, True, 0x2 << 16 | 1 << 6, True, False),
    ],
)
def test_destinations(identifier: int, x2apic: bool, destination: int, logical: bool, hit: bool) -> None:
    """Physical by identifier, all of 32 bits in x2APIC mode; logical by cluster and bit."""
    assert enabled(identifier, x2apic=x2apic).addressed(destination, logical) == hit


def test_flat_logical_destination() -> None:
    """xAPIC: any common bit with the logical identifier."""
    apic = enabled(1)
    apic.write(lapic.LDR, 0x02 << 24, 0)
    assert apic.addressed(0x06, True)
    assert not apic.addressed(0x04, True)


def test_timer_modes() -> None:
    """One-shot fires once, periodic again and again, and lost ticks are one."""
    apic = enabled()
    apic.write(lapic.TIMER_DIVIDE, 0xB, 0)  # by 1
    apic.write(lapic.LVT_TIMER, 0x40, 0)
    apic.write(lapic.TIMER_INITIAL, 100, 0)
    assert apic.read(lapic.TIMER_CURRENT, 40) == 60
    apic.tick(99)
    assert apic.requested == 0
    apic.tick(100)
    assert [apic.pending, apic.deadline_ns] == [0x40, None]
    apic.acknowledge(0x40)
    apic.write(lapic.EOI, 0, 100)
    apic.write(lapic.LVT_TIMER, 0x20041, 100)
    apic.write(lapic.TIMER_INITIAL, 100, 100)
    apic.tick(1250)
    assert [apic.pending, apic.deadline_ns] == [0x41, 1300]


def test_tsc_deadline() -> None:
    """Armed only in its mode, disarmed by 0."""
    apic = enabled()
    apic.set_tsc_deadline(5, 50)
    assert apic.tsc_deadline == 0
    apic.write(lapic.LVT_TIMER, 0x40040, 0)
    apic.set_tsc_deadline(5, 50)
    assert apic.deadline_ns == 50
    apic.set_tsc_deadline(0, 0)
    assert apic.deadline_ns is None


def test_interrupt_commands() -> None:
    """xAPIC takes the destination from ICR2, x2APIC from the upper half."""
    apic = enabled()
    apic.write(lapic.ICR2, 5 << 24, 0)
    ipi = apic.write(lapic.ICR, 0x4608, 0)
    assert ipi == lapic.Ipi(lapic.STARTUP, 8, 0, 5, False, True)
    ipi = enabled(x2apic=True).write(lapic.ICR, 300 << 32 | 0x4500, 0)
    assert ipi == lapic.Ipi(lapic.INIT, 0, 0, 300, False, True)


def test_level_interrupt_comes_again_until_its_line_is_down() -> None:
    """IOAPIC pin 5, level: at EOI it is delivered anew."""
    board = Board(bytes.fromhex("f4"))
    machine = board.vm.machine
    assert machine is not None
    ioapic, processor = board.vm.irqchip.ioapic, machine.processors[0]
    processor.lapic.write(lapic.SVR, 0x1FF, 0)
    for register, value in ((0, 0x1A), (0x10, 0x8045)):
        ioapic.write(register, value)
    ioapic.set_line(5, True)
    assert processor.lapic.pending == 0x45
    processor.lapic.acknowledge(0x45)
    processor.write_lapic(lapic.EOI, 0)
    assert processor.lapic.pending == 0x45
    ioapic.set_line(5, False)
    processor.lapic.acknowledge(0x45)
    processor.write_lapic(lapic.EOI, 0)
    assert processor.lapic.pending is None


def test_message_reaches_its_apic() -> None:
    """KVM_SIGNAL_MSI by physical destination."""
    board = Board(bytes.fromhex("f4"), vcpus=2)
    machine = board.vm.machine
    assert machine is not None
    machine.processors[1].lapic.write(lapic.SVR, 0x1FF, 0)
    assert machine.devices.deliver(message_of(0xFEE01000, 0x55)) == 1
    assert machine.processors[1].lapic.pending == 0x55
