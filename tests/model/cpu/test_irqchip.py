# SPDX-License-Identifier: GPL-2.0-or-later
"""IOAPIC, PICs and PIT by their data sheets, the routes of GSIs, and the state that the VMM has of them."""

from __future__ import annotations

import struct

import pytest

from pytest_seves.model.cpu import ioapic, lapic
from pytest_seves.model.cpu.ioapic import Ioapic, Message
from pytest_seves.model.cpu.lapic import Lapic
from pytest_seves.model.cpu.pic import Pics
from pytest_seves.model.cpu.pit import HZ, Pit
from pytest_seves.model.irqchip import IOAPIC, Irqchip, Source
from tests.model.cpu.board import Board, long_mode
from tests.model.cpu.test_guests import APIC_ON, COUNT, machine_of

LEVEL, MASKED, REMOTE_IRR = 1 << 15, 1 << 16, 1 << 14


class Wire:
    """An IOAPIC, and what it sends."""

    def __init__(self, taken: int = 1) -> None:
        self.sent: list[Message] = []
        self.taken = taken
        self.chip = Ioapic(self._send)

    def _send(self, message: Message) -> int:
        self.sent.append(message)
        return self.taken

    def entry(self, pin: int, low: int, high: int = 0) -> None:
        """Write a redirection entry."""
        for index, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
            self.chip.write(0, index)
            self.chip.write(0x10, value)

    def low(self, pin: int) -> int:
        """Read the lower half of one."""
        self.chip.write(0, 0x10 + 2 * pin)
        return self.chip.read(0x10)


def test_edge_is_sent_once_for_each_rise() -> None:
    """Vector, mode, destination and logical bit are the entry's; a line that stays up says nothing more."""
    wire = Wire()
    wire.entry(4, 0x0931, 0x03000000)
    assert wire.chip.set_line(4, True) == 1
    assert wire.chip.set_line(4, True) == 0
    wire.chip.set_line(4, False)
    wire.chip.set_line(4, True)
    assert wire.sent == [Message(0x31, lapic.LOWEST, 3, True, False)] * 2


def test_level_waits_for_its_eoi() -> None:
    """Remote IRR is set by delivery and cleared by EOI, which sends again what is still up."""
    wire = Wire()
    wire.entry(9, LEVEL | 0x40)
    wire.chip.set_line(9, True)
    assert wire.low(9) & REMOTE_IRR
    assert wire.chip.set_line(9, True) == 0
    wire.chip.end_of_interrupt(0x41)  # another vector
    assert len(wire.sent) == 1
    wire.chip.end_of_interrupt(0x40)
    assert len(wire.sent) == 2
    wire.chip.set_line(9, False)
    wire.chip.end_of_interrupt(0x40)
    assert (len(wire.sent), wire.low(9) & REMOTE_IRR) == (2, 0)


def test_level_comes_when_it_is_unmasked() -> None:
    """A masked pin is not delivered; unmasked while its line is up, it is."""
    wire = Wire()
    wire.entry(9, MASKED | LEVEL | 0x40)
    assert wire.chip.set_line(9, True) == -1
    assert wire.sent == []
    wire.entry(9, LEVEL | 0x40)
    assert len(wire.sent) == 1


def test_software_clears_remote_irr_by_edge_mode() -> None:
    """It cannot be written; a write of edge mode clears it."""
    wire = Wire()
    wire.entry(9, LEVEL | 0x40)
    wire.chip.set_line(9, True)
    wire.entry(9, MASKED | LEVEL | 0x40)
    assert wire.low(9) & REMOTE_IRR
    wire.entry(9, MASKED | 0x40 | REMOTE_IRR)
    assert not wire.low(9) & REMOTE_IRR


def test_ioapic_state_goes_out_and_in() -> None:
    """struct kvm_ioapic_state: base, select, identifier, lines, entries; a line that is up is delivered."""
    wire = Wire()
    wire.chip.write(0, 0)
    wire.chip.write(0x10, 0x05000000)
    wire.entry(3, LEVEL | 0x55, 0x01000000)
    wire.chip.set_line(3, True)
    raw = wire.chip.state()
    assert struct.unpack_from("<QIII", raw) == (ioapic.BASE, 0x16, 5, 8)
    assert struct.unpack_from("<Q", raw, 24 + 8 * 3)[0] == 1 << 56 | LEVEL | REMOTE_IRR | 0x55
    other = Wire()
    other.chip.restore(raw)
    assert other.chip.state() == raw


def initialised() -> Pics:
    """Vectors 0x20 and 0x28, cascaded, nothing masked."""
    pics = Pics()
    for base, vector, wiring in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        for port, value in (
            (base, 0x11),
            (base + 1, vector),
            (base + 1, wiring),
            (base + 1, 1),
            (base + 1, 0),
        ):
            pics.write(port, value)
    return pics


def test_pic_serves_by_priority_until_eoi() -> None:
    """Line 1 before 4; 4 waits for the EOI; a non-specific one ends the highest."""
    pics = initialised()
    pics.set_line(4, True)
    pics.set_line(1, True)
    assert [pics.acknowledge(), pics.pending] == [0x21, False]
    pics.write(0x20, 0x20)
    assert [pics.pending, pics.acknowledge()] == [True, 0x24]
    pics.write(0x20, 0x0B)
    assert pics.read(0x20) == 1 << 4


def test_pic_slave_comes_by_line_2() -> None:
    """Both have it in service."""
    pics = initialised()
    pics.set_line(12, True)
    assert pics.acknowledge() == 0x2C
    assert [chip.isr for chip in pics.chips] == [1 << 2, 1 << 4]
    pics.write(0xA0, 0x20)
    pics.write(0x20, 0x20)
    assert [chip.isr for chip in pics.chips] == [0, 0]
    assert not pics.pending


def test_pic_mask_and_level() -> None:
    """A masked line waits; ELCR makes one level triggered: it is gone when it falls."""
    pics = initialised()
    pics.write(0x21, 1 << 5)
    pics.write(0x4D0, 1 << 5)
    pics.set_line(5, True)
    seen = [pics.pending]
    pics.write(0x21, 0)
    seen.append(pics.pending)
    pics.set_line(5, False)
    assert [*seen, pics.pending] == [False, True, False]
    assert pics.read(0x4D0) == 1 << 5


def test_pic_rotation_and_specific_eoi() -> None:
    """A rotating EOI makes the line served the lowest."""
    pics = initialised()
    pics.set_line(3, True)
    pics.acknowledge()
    pics.write(0x20, 0xE3)
    pics.set_line(3, False)
    pics.set_line(3, True)
    pics.set_line(4, True)
    assert pics.acknowledge() == 0x24


def test_pic_without_anybody_is_spurious() -> None:
    """INTA without a request gives line 7's vector."""
    assert initialised().acknowledge() == 0x27


def test_pic_state_goes_out_and_in() -> None:
    """struct kvm_pic_state: 16 bytes, the vector at 5, ELCR at 14."""
    pics = initialised()
    pics.write(0x4D1, 0xFF)
    raw = pics.chips[1].state()
    assert (len(raw), raw[5], raw[14], raw[15]) == (16, 0x28, 0xDE, 0xDE)
    other = Pics()
    other.restore(1, raw)
    assert other.chips[1].state() == raw


MS = 1_000_000


def start(pit: Pit, channel: int, mode: int, count: int, now_ns: int = 0) -> None:
    """Low byte, then high byte."""
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, now_ns)
    pit.write(0x40 + channel, count & 0xFF, now_ns)
    pit.write(0x40 + channel, count >> 8, now_ns)


def test_pit_rate_generator_ticks_again_and_again() -> None:
    """Missed ticks are one."""
    pit = Pit()
    assert pit.deadline_ns is None
    start(pit, 0, 2, HZ // 1000)
    assert not pit.tick(MS - 2000)
    assert pit.tick(MS)
    assert pit.tick(5 * MS)
    assert not pit.tick(5 * MS)


def test_pit_one_shot_ticks_once() -> None:
    """Mode 0."""
    pit = Pit()
    start(pit, 0, 0, HZ // 1000)
    assert pit.tick(MS)
    assert (pit.tick(9 * MS), pit.deadline_ns) == (False, None)


def test_pit_counts_down_and_latches() -> None:
    """A latched count stays; the read-back command latches the status too."""
    pit = Pit()
    start(pit, 0, 2, 0xFFFF)
    half = 0x8000 * 1_000_000_000 // HZ + 1
    pit.write(0x43, 0x00, half)
    assert [pit.read(0x40, 2 * half), pit.read(0x40, 2 * half)] == [0xFF, 0x7F]
    pit.write(0x43, 0xE2, half)
    assert pit.read(0x40, half) & 0x3F == 0x34


def test_pit_channel_2_is_gated_by_port_61() -> None:
    """The output rises when the count is done, as calibration loops want it."""
    pit = Pit()
    pit.write(0x61, 1, 0)
    start(pit, 2, 0, HZ // 1000)
    assert [pit.read(0x61, now) >> 5 & 1 for now in (0, MS // 2, MS + 1000)] == [0, 0, 1]


def test_pit_state_goes_out_and_in() -> None:
    """struct kvm_pit_state2: 112 bytes, the count first."""
    pit = Pit()
    start(pit, 0, 3, 1000)
    raw = pit.state()
    assert (len(raw), struct.unpack_from("<I", raw)[0], raw[13]) == (112, 1000, 3)
    other = Pit()
    other.restore(raw, 7)
    assert other.deadline_ns == 7 + 1000 * 1_000_000_000 // HZ


def test_default_routes() -> None:
    """A GSI is the pin of that number, of the PIC and the IOAPIC; from 16 on there is the IOAPIC alone."""
    wire = Wire()
    chip = Irqchip()
    chip.deliver = wire._send
    chip.use_default_routes()
    for pin, vector in ((2, 0x52), (0, 0x50), (20, 0x64)):
        for register, value in ((0, 0x10 + 2 * pin), (0x10, vector)):
            chip.ioapic.write(register, value)
    chip.set_line(0, True)
    chip.set_line(20, True)
    assert [message.vector for message in wire.sent] == [0x50, 0x64]
    assert chip.pics.chips[0].irr == 1


def test_routes_are_replaced() -> None:
    """A GSI that is a message, a pin that stays up until every source has let go, and nonsense refused."""
    wire = Wire()
    chip = Irqchip()
    chip.deliver = wire._send
    entry = struct.Struct("<IIII 3I 20x")
    raw = entry.pack(30, 2, 0, 0, 0xFEE03000, 0, 0x4041)
    raw += entry.pack(5, 1, 0, 0, IOAPIC, 9, 0) + entry.pack(6, 1, 0, 0, IOAPIC, 9, 0)
    assert chip.set_routes(raw) == 0
    assert chip.set_line(30, True) == 1
    assert wire.sent == [Message(0x41, 0, 3, False, False)]
    chip.set_line(5, True)
    chip.set_line(6, True, Source.RESAMPLE)
    chip.set_line(5, False)
    assert struct.unpack_from("<I", chip.ioapic.state(), 16)[0] == 1 << 9
    chip.set_line(5, True)
    chip.set_line(5, False, Source.RESAMPLE)
    chip.set_line(6, False)  # of one source, GSIs that share a pin share its state
    assert struct.unpack_from("<I", chip.ioapic.state(), 16)[0] == 0
    assert chip.set_line(7, True) == -1
    assert chip.set_routes(entry.pack(5, 1, 0, 0, IOAPIC, 24, 0)) < 0


def test_lapic_state_goes_out_and_in() -> None:
    """Requests, what is in service and the timer survive KVM_GET_LAPIC and KVM_SET_LAPIC."""
    apic = Lapic(0, bootstrap=True)
    apic.write(lapic.SVR, 0x1FF, 0)
    apic.accept(0x41)
    apic.accept(0xA2, level=True)
    apic.acknowledge(0xA2)
    apic.write(lapic.TIMER_DIVIDE, 0xB, 0)
    apic.write(lapic.LVT_TIMER, 0x20050, 0)
    apic.write(lapic.TIMER_INITIAL, 1000, 0)
    other = Lapic(0, bootstrap=True)
    other.restore(apic.state(400), 5000)
    assert (other.requested, other.in_service, other.level) == (1 << 0x41, 1 << 0xA2, 1 << 0xA2)
    assert other.deadline_ns == 5600
    assert other.state(5000) == apic.state(400)


@pytest.mark.parametrize(("entry", "seen"), [(0x700, True), (0x10700, False), (0x000, False)])
def test_external_interrupts_need_lint0(entry: int, seen: bool) -> None:
    """ExtINT, not masked."""
    apic = Lapic(0, bootstrap=True)
    assert apic.accepts_external
    apic.write(lapic.LVT_LINT0, entry, 0)
    assert apic.accepts_external is seen


def test_pit_interrupts_a_halted_guest_through_the_pic() -> None:
    """The whole way: sti; hlt; cli; hlt with the timer in mode 0."""
    board = long_mode(bytes.fromhex("fb f4 fa f4"), "plain", handlers={0x20: COUNT})
    vm = board.vm
    vm._irqchip = vm._pit = True
    vm.irqchip.use_default_routes()
    vm.irqchip.pics = initialised()
    start(vm.irqchip.pit, 0, 0, 1000)
    board.work(turns=100_000)
    assert board.guest(0x1000) == 1


def test_lowest_priority_takes_one() -> None:
    """Of two that are addressed, the one with the lower task priority."""
    board = long_mode(APIC_ON + bytes.fromhex("f4"), "plain", vcpus=2)
    machine = machine_of(board)
    for number, priority in ((0, 0x50), (1, 0x10)):
        apic = machine.processors[number].lapic
        apic.write(lapic.SVR, 0x1FF, 0)
        apic.write(lapic.LDR, 1 << 24 + number, 0)
        apic.write(lapic.TPR, priority, 0)
    assert machine.devices.deliver(Message(0x61, lapic.LOWEST, 3, True, False)) == 1
    assert [p.lapic.requested >> 0x61 & 1 for p in machine.processors.values()] == [0, 1]


def test_nmi_message_is_an_nmi() -> None:
    """An MSI or IOAPIC entry of that mode."""
    machine = Board(bytes.fromhex("f4")).vm.machine
    assert machine is not None
    machine.devices.deliver(Message(0, lapic.NMI, 0, False, False))
    assert machine.processors[0].lapic.nmi
