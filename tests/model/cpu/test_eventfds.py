# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_IOEVENTFD and KVM_IRQFD, as virt/kvm/eventfd.c has them, of VMs whose VMM is this process."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from pytest_seves.model.cpu.ioapic import Ioapic
from pytest_seves.model.cpu.pic import Pics
from pytest_seves.model.cpu.processor import Activity
from pytest_seves.model.irqchip import IOAPIC
from pytest_seves.model.kvm_vm import Vm
from pytest_seves.model.memory import Refusal
from pytest_seves.model.supervisor import Call
from pytest_seves.spec import ghcb, kvm
from tests.model.cpu.board import HOST, Board, long_mode
from tests.model.cpu.test_guests import APIC_ON, ASK, COUNT, GHCB, HLT, ask, event, machine_of, write_msr
from tests.model.cpu.test_irqchip import LEVEL, MASKED, initialised

PIO, MATCH = kvm.KVM_IOEVENTFD_FLAG_PIO, kvm.KVM_IOEVENTFD_FLAG_DATAMATCH
BACK, CCW = kvm.KVM_IOEVENTFD_FLAG_DEASSIGN, kvm.KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY
OFF, RESAMPLE = kvm.KVM_IRQFD_FLAG_DEASSIGN, kvm.KVM_IRQFD_FLAG_RESAMPLE
PORT, ADDRESS, ARGUMENT = 0xC010, 0x3000004, 0x3FF000
VECTOR = 0x41
#: sti; hlt; cli; hlt
WAIT = bytes.fromhex("fb f4 fa f4")
_ROUTE = struct.Struct("<IIII 3I 20x")


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Make eventfds, closed with the test."""
    made: list[int] = []

    def make() -> int:
        made.append(os.eventfd(0, os.EFD_NONBLOCK))
        return made[-1]

    yield make
    for descriptor in made:
        os.close(descriptor)


def request(board: Board, number: int, raw: bytes) -> int | None:
    """An ioctl of the VM."""
    board.memory.ram[ARGUMENT : ARGUMENT + len(raw)] = raw
    call = Call(0, 0, 0, number, HOST + ARGUMENT)
    try:
        return Vm.requests[number](board.vm, call)
    except Refusal as refusal:
        return -refusal.errno


def ioeventfd(
    board: Board, descriptor: int, address: int = PORT, length: int = 2, flags: int = PIO, value: int = 0
) -> int | None:
    """KVM_IOEVENTFD."""
    raw = struct.pack("<QQIiI36x", value, address, length, descriptor, flags)
    return request(board, kvm.KVM_IOEVENTFD, raw)


def irqfd(board: Board, descriptor: int, gsi: int = 24, flags: int = 0, resample: int = 0) -> int | None:
    """KVM_IRQFD."""
    raw = struct.pack("<IIII16x", descriptor & 0xFFFFFFFF, gsi, flags, resample & 0xFFFFFFFF)
    return request(board, kvm.KVM_IRQFD, raw)


def route(board: Board, *entries: tuple[int, int, int, int, int]) -> int | None:
    """KVM_SET_GSI_ROUTING: GSI, type, and what the type has."""
    packed = b"".join(_ROUTE.pack(gsi, kind, 0, 0, *rest) for gsi, kind, *rest in entries)
    return request(board, kvm.KVM_SET_GSI_ROUTING, struct.pack("<II", len(entries), 0) + packed)


def message(gsi: int = 24, vector: int = VECTOR) -> tuple[int, int, int, int, int]:
    """A route to vCPU 0."""
    return (gsi, 2, 0xFEE00000, 0, vector)


def count(descriptor: int) -> int:
    """What an eventfd has counted, 0 for nothing."""
    try:
        return os.eventfd_read(descriptor)
    except BlockingIOError:
        return 0


def copies(descriptor: int) -> int:
    """How many descriptors of this process are this eventfd."""

    def identity(number: int | str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/fdinfo/{number}") as file:
            return [line for line in file if line.startswith("eventfd-id")]
        return []

    return sum(identity(number) == identity(descriptor) for number in os.listdir("/proc/self/fd"))


def full() -> Board:
    """A halted guest with every controller in the kernel, LAPIC on: its handler counts at 0x1000."""
    board = long_mode(APIC_ON + WAIT, "plain", handlers={VECTOR: COUNT, 0x42: COUNT})
    board.vm._irqchip = True
    board.vm.irqchip.use_default_routes()
    board.work()
    assert machine_of(board).processors[0].activity is Activity.HALTED
    return board


# KVM_IOEVENTFD


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"length": 3}, -errno.EINVAL),
        ({"address": (1 << 64) - 1, "flags": 0}, -errno.EINVAL),
        ({"flags": PIO | 1 << 5}, -errno.EINVAL),
        ({"length": 0, "flags": MATCH}, -errno.EINVAL),
        ({"descriptor": -1}, -errno.EBADF),
        ({"flags": PIO | BACK}, -errno.ENOENT),
        ({"descriptor": -1, "flags": PIO | BACK}, -errno.EBADF),
        ({"flags": CCW}, 0),  # a bus that only s390 writes to
        ({"length": 0}, 0),
        ({"length": 8, "flags": 0}, 0),
    ],
)
def test_ioeventfd_arguments(eventfd: Callable[[], int], arguments: dict[str, int], wanted: int) -> None:
    """kvm_assign_ioeventfd() and kvm_deassign_ioeventfd()."""
    assert ioeventfd(Board(HLT), **{"descriptor": eventfd(), **arguments}) == wanted


def test_ioeventfd_wants_an_eventfd() -> None:
    """EINVAL of another descriptor, of both requests."""
    board = Board(HLT)
    ours, theirs = os.pipe()
    assert [ioeventfd(board, ours), irqfd(board, ours)] == [-errno.EINVAL] * 2
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("length", "flags", "value", "wanted"),
    [
        (2, PIO, 0, -errno.EEXIST),
        (2, PIO | MATCH, 5, -errno.EEXIST),
        (0, PIO, 0, -errno.EEXIST),
        (2, PIO | MATCH, 6, 0),
        (4, PIO | MATCH, 5, 0),
        (2, MATCH, 5, 0),
    ],
)
def test_ioeventfds_collide(
    eventfd: Callable[[], int], length: int, flags: int, value: int, wanted: int
) -> None:
    """One that may answer the same write as another is refused."""
    board = Board(HLT)
    assert ioeventfd(board, eventfd(), flags=PIO | MATCH, value=5) == 0
    assert ioeventfd(board, eventfd(), length=length, flags=flags, value=value) == wanted


def test_ioeventfd_is_taken_back_by_what_it_is(eventfd: Callable[[], int]) -> None:
    """Any copy of the eventfd will do, with the same address, length and value; then the place is free."""
    board, ours = Board(HLT), eventfd()
    copy = os.dup(ours)
    assert ioeventfd(board, ours, flags=PIO | MATCH, value=5) == 0
    for wrong in ({"value": 6}, {"length": 4}, {"address": PORT + 2}, {"flags": PIO | BACK}):
        arguments = {"descriptor": copy, "flags": PIO | MATCH | BACK, "value": 5, **wrong}
        assert ioeventfd(board, **arguments) == -errno.ENOENT
    assert ioeventfd(board, eventfd(), flags=PIO | MATCH | BACK, value=5) == -errno.ENOENT
    assert ioeventfd(board, copy, flags=PIO | MATCH | BACK, value=5) == 0
    assert ioeventfd(board, ours) == 0
    os.close(copy)


#: mov dx, PORT; mov eax, 7; out dx, ax; hlt
OUT = bytes.fromhex("66ba10c0 b807000000 66ef f4")


@pytest.mark.parametrize(
    ("length", "flags", "value", "heard"),
    [
        (2, PIO, 0, True),
        (0, PIO, 0, True),
        (2, PIO | MATCH, 7, True),
        (2, PIO | MATCH, 8, False),
        (4, PIO, 0, False),
        (2, 0, 0, False),
        (2, CCW, 0, False),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "es"])
def test_port_write_signals(
    eventfd: Callable[[], int], kind: str, length: int, flags: int, value: int, heard: bool
) -> None:
    """Instead of an exit, by OUT as by NAE IOIO; what does not match is the VMM's."""
    outwards = event(0x7B, PORT << 16 | 2 << 4, rax=7)
    board = long_mode(ASK, prepare=ask(outwards)) if kind == "es" else long_mode(OUT, "plain")
    ours = eventfd()
    assert ioeventfd(board, ours, length=length, flags=flags, value=value) == 0
    board.work()
    seen = (count(ours), board.ports)
    assert seen == ((1, []) if heard else (0, [(PORT, b"\x07\x00")]))


@pytest.mark.parametrize("kind", ["plain", "es"])
def test_memory_write_signals(eventfd: Callable[[], int], kind: str) -> None:
    """Instead of an exit, by an instruction as by NAE MMIO; a read is the VMM's."""
    request = event(ghcb.MMIO_WRITE, ADDRESS, 4, sw_scratch=GHCB + ghcb.SHARED_BUFFER)
    if kind == "es":
        board = long_mode(ASK, prepare=ask(request))
    else:  # mov eax, [ADDRESS]; mov [ADDRESS], eax; hlt
        board = long_mode(bytes.fromhex("8b042504000003 89042504000003 f4"), "plain")
    ours = eventfd()
    assert ioeventfd(board, ours, address=ADDRESS, length=4, flags=0) == 0
    board.work()
    assert (count(ours), board.mmio) == (1, [])
    assert machine_of(board).trace.counts[1 << 18] == 1


def test_memory_is_shown_before_the_signal(eventfd: Callable[[], int]) -> None:
    """A device that hears of a request finds it in memory: mov [0x1000], eax before the OUT."""
    board = long_mode(bytes.fromhex("b84d0d0000 89042500100000") + OUT, "plain")
    ioeventfd(board, eventfd())
    board.work()
    assert board.memory.ram[0x1000:0x1004] == (0xD4D).to_bytes(4, "little")


def test_string_of_writes_goes_where_its_first_does(eventfd: Callable[[], int]) -> None:
    """emulator_pio_in_out(): what misses behind a hit is lost; if the first misses, all are the VMM's.

    mov dx, PORT; mov esi, 0x1000; mov ecx, 2; rep outsw; hlt
    """
    code = bytes.fromhex("66ba10c0 be00100000 b902000000 f3666f f4")
    seen = []
    for words in (b"\x07\0\x08\0", b"\x08\0\x07\0"):
        ours = eventfd()
        board = long_mode(code, "plain")
        board.put(0x1000, words)
        ioeventfd(board, ours, flags=PIO | MATCH, value=7)
        board.work()
        seen.append((count(ours), board.ports))
    assert seen == [(1, []), (0, [(PORT, b"\x08\0\x07\0")])]


def test_signals_outlive_the_vmms_descriptor(eventfd: Callable[[], int]) -> None:
    """The VM has a reference of its own, until it ends."""
    board, ours = long_mode(OUT, "plain"), eventfd()
    copy = os.dup(ours)
    ioeventfd(board, copy)
    os.close(copy)
    board.work()
    assert count(ours) == 1
    assert copies(ours) == 2
    board.vm.ioeventfds.close()
    assert copies(ours) == 1


# KVM_IRQFD


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"flags": 1 << 2}, -errno.EINVAL),
        ({"descriptor": -1}, -errno.EBADF),
        ({"descriptor": -1, "flags": OFF}, -errno.EBADF),
        ({"flags": RESAMPLE, "resample": -1}, -errno.EBADF),
        ({"flags": OFF}, 0),  # there is none, which is no error
        ({}, 0),
    ],
)
def test_irqfd_arguments(eventfd: Callable[[], int], arguments: dict[str, int], wanted: int) -> None:
    """kvm_irqfd_assign() and kvm_irqfd_deassign()."""
    assert irqfd(full(), **{"descriptor": eventfd(), **arguments}) == wanted


def test_irqfd_wants_controllers(eventfd: Callable[[], int]) -> None:
    """kvm_arch_irqfd_allowed(): none without them, none with a resampler when they are split."""
    board = Board(HLT)
    assert irqfd(board, eventfd(), flags=RESAMPLE, resample=eventfd()) == -errno.EINVAL
    assert irqfd(board, eventfd()) == 0
    board.vm.in_kernel_lapic = False
    assert irqfd(board, eventfd()) == -errno.EINVAL


def test_eventfd_is_one_irqfd(eventfd: Callable[[], int]) -> None:
    """EBUSY for a second one on it, of any GSI and by any copy, until it is taken back by eventfd and GSI."""
    board, ours = full(), eventfd()
    copy = os.dup(ours)
    assert irqfd(board, ours) == 0
    assert irqfd(board, copy, gsi=25) == -errno.EBUSY
    assert irqfd(board, ours, gsi=25, flags=OFF) == 0
    assert irqfd(board, ours) == -errno.EBUSY
    assert irqfd(board, copy, flags=OFF) == 0
    assert irqfd(board, copy, gsi=25) == 0
    os.close(copy)


def test_irqfd_wakes_a_halted_guest(eventfd: Callable[[], int]) -> None:
    """By a message; the count is taken, several are one."""
    board, ours = full(), eventfd()
    assert route(board, message()) == 0
    assert irqfd(board, ours) == 0
    os.eventfd_write(ours, 3)
    board.hear()
    board.work()
    assert (board.guest(0x1000), count(ours)) == (1, 0)


def test_routes_are_those_of_the_moment(eventfd: Callable[[], int]) -> None:
    """A signal before KVM_SET_GSI_ROUTING goes the old way, though nobody has looked; one after it not."""
    board, ours = full(), eventfd()
    apic = machine_of(board).processors[0].lapic
    route(board, message())
    irqfd(board, ours)
    os.eventfd_write(ours, 1)
    route(board, message(vector=0x42))
    assert apic.requested == 1 << VECTOR
    os.eventfd_write(ours, 1)
    board.hear()
    assert apic.requested == 1 << VECTOR | 1 << 0x42


def test_signal_before_it_is_an_irqfd(eventfd: Callable[[], int]) -> None:
    """It interrupts once, and its count stays for the VMM; taken back, what is counted is taken."""
    board, ours = full(), eventfd()
    route(board, message())
    os.eventfd_write(ours, 2)
    irqfd(board, ours)
    board.hear()
    board.work()
    assert (board.guest(0x1000), count(ours)) == (1, 2)
    os.eventfd_write(ours, 1)
    irqfd(board, ours, flags=OFF)
    assert count(ours) == 0
    assert machine_of(board).processors[0].lapic.requested == 1 << VECTOR


def test_irqfd_taken_back_is_silent(eventfd: Callable[[], int]) -> None:
    """And what it counts is the VMM's again."""
    board, ours = full(), eventfd()
    route(board, message())
    irqfd(board, ours)
    irqfd(board, ours, flags=OFF)
    os.eventfd_write(ours, 1)
    board.hear()
    board.work()
    assert (board.guest(0x1000), count(ours)) == (0, 1)


def test_irqfd_without_resampler_is_a_pulse(eventfd: Callable[[], int]) -> None:
    """On both controllers' pins: an edge is there, a level is gone."""
    board, ours = full(), eventfd()
    board.vm.irqchip.pics = initialised()
    irqfd(board, ours, gsi=5)
    os.eventfd_write(ours, 1)
    board.hear()
    assert board.vm.irqchip.pics.chips[0].irr == 1 << 5
    assert struct.unpack_from("<I", board.vm.irqchip.ioapic.state(), 16)[0] == 0


def level_pin(board: Board, pin: int = 20) -> None:
    """Let the IOAPIC send a pin's level as VECTOR."""
    for register, value in ((0, 0x10 + 2 * pin), (0x10, LEVEL | VECTOR)):
        board.vm.irqchip.ioapic.write(register, value)


def test_resampler_hears_of_the_eoi(eventfd: Callable[[], int]) -> None:
    """The level stays until the guest's EOI, falls with it, and every resampler of the GSI is told.

    The handler counts and writes EOI.
    """
    eoi = bytes.fromhex("48ff042500100000") + write_msr(0x80B, 0) + bytes.fromhex("48cf")
    board = long_mode(APIC_ON + bytes.fromhex("fb ebfe"), "plain", handlers={VECTOR: eoi})
    board.vm._irqchip = True
    board.vm.irqchip.use_default_routes()
    board.work(turns=10)
    level_pin(board)
    ours, told, other = eventfd(), eventfd(), eventfd()
    assert irqfd(board, ours, gsi=20, flags=RESAMPLE, resample=told) == 0
    assert irqfd(board, eventfd(), gsi=20, flags=RESAMPLE, resample=other) == 0
    assert irqfd(board, eventfd(), gsi=21, flags=RESAMPLE, resample=eventfd()) == 0
    os.eventfd_write(ours, 1)
    board.hear()
    assert struct.unpack_from("<I", board.vm.irqchip.ioapic.state(), 16)[0] == 1 << 20
    assert (count(told), count(other)) == (0, 0)
    board.work(turns=10)
    assert (board.guest(0x1000), count(told), count(other)) == (1, 1, 1)
    assert struct.unpack_from("<I", board.vm.irqchip.ioapic.state(), 16)[0] == 0


def test_last_resampler_lets_the_level_fall(eventfd: Callable[[], int]) -> None:
    """irqfd_resampler_shutdown(): not before."""
    board, ours, other = full(), eventfd(), eventfd()
    for descriptor in (ours, other):
        irqfd(board, descriptor, gsi=20, flags=RESAMPLE, resample=eventfd())
    os.eventfd_write(ours, 1)
    lines = []
    for descriptor in (ours, other):
        irqfd(board, descriptor, gsi=20, flags=OFF)
        lines.append(struct.unpack_from("<I", board.vm.irqchip.ioapic.state(), 16)[0])
    assert lines == [1 << 20, 0]


@pytest.mark.parametrize(("profile", "asked"), [("linux-6.1", 0), ("linux-6.12", 1)])
def test_unmasked_level_is_asked_for(eventfd: Callable[[], int], profile: str, asked: int) -> None:
    """Since fef8f2b90edb (6.4) the resampler says whether a level that waited is still there."""
    board, told, ours = Board(HLT, profile=profile), eventfd(), eventfd()
    board.vm._irqchip = True
    board.vm.irqchip.use_default_routes()
    irqfd(board, ours, gsi=20, flags=RESAMPLE, resample=told)
    os.eventfd_write(ours, 1)
    board.hear()
    level_pin(board)
    assert count(told) == asked


def test_irqfds_end_with_the_vm(eventfd: Callable[[], int]) -> None:
    """Every copy is given up, and nothing is watched any more."""
    board, ours, told = Board(HLT), eventfd(), eventfd()
    board.vm._irqchip = True
    assert irqfd(board, ours, flags=RESAMPLE, resample=told) == 0
    assert (copies(ours), copies(told), len(board.watched)) == (2, 2, 1)
    board.vm.irqfds.close()
    assert (copies(ours), copies(told), len(board.watched)) == (1, 1, 0)


# The ends of interrupts


def test_ioapic_tells_of_every_eoi() -> None:
    """kvm_ioapic_update_eoi(): each pin of that vector, edge and level, masked or not."""
    told: list[int] = []
    chip = Ioapic(lambda _: 1, told.append)
    for pin, entry in ((3, VECTOR), (9, LEVEL | VECTOR), (10, MASKED | LEVEL | VECTOR), (11, LEVEL | 0x42)):
        chip.write(0, 0x10 + 2 * pin)
        chip.write(0x10, entry)
    chip.end_of_interrupt(VECTOR)
    assert told == [3, 9, 10]


def test_pics_tell_of_every_eoi() -> None:
    """pic_clear_isr(): by a command, by automatic EOI, and by a reset of what waits at an edge."""
    told: list[int] = []
    pics = Pics(told.append)
    pics.chips = initialised().chips
    pics.set_line(12, True)
    pics.acknowledge()
    assert told == []
    pics.write(0xA0, 0x20)
    pics.write(0x20, 0x62)
    assert told == [12, 2]
    pics.chips[0].auto_eoi = 1
    pics.set_line(4, True)
    pics.acknowledge()
    assert told == [12, 2, 4]
    pics.set_line(5, True)
    pics.write(0x20, 0x11)
    assert told == [12, 2, 4, 5]


def test_acknowledged_pin_is_the_gsi_that_leads_to_it() -> None:
    """kvm_irq_map_chip_pin(), of the routes as they are."""
    board = full()
    told: list[int] = []
    board.vm.irqchip.acknowledged = told.append
    level_pin(board, 20)
    board.vm.irqchip.ioapic.end_of_interrupt(VECTOR)
    route(board, (50, 1, IOAPIC, 20, 0))
    board.vm.irqchip.ioapic.end_of_interrupt(VECTOR)
    route(board, message())
    board.vm.irqchip.ioapic.end_of_interrupt(VECTOR)
    assert told == [20, 50]
