# SPDX-License-Identifier: GPL-2.0-or-later
"""All vCPUs of a VM on one engine: turns, guest time, and exits to the VMM.

One vCPU executes at a time, in turns that end by its own doing: after a number of exits or of blocks, at
PAUSE or when it halts. While one waits for the VMM to complete an access, none executes. So the order in
which things happen does not depend on how fast anything is, and the same launch goes the same way twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..memory import TargetMemory
from . import exits, lapic, start
from .devices import Devices
from .engine import Engine
from .events import Events, TripleFault
from .guest_memory import GuestMemory, Slot
from .processor import Activity, Processor
from .trace import Trace
from .virtual_memory import VirtualMemory

if TYPE_CHECKING:
    from ..kvm_vcpu import Vcpu
    from ..kvm_vm import Vm

_TURN_EXITS = 64
_TURN_BLOCKS = 20_000
_EXIT_NS = 5_000
_BLOCK_NS = 20
#: How long a vCPU whose turn it is may be away from KVM_RUN before others go on without it.
_GRACE_S = 0.1
_IDLE_S = 0.002
_MMIO_WINDOW = 0x60_0000_0000


class Machine:
    """The processors of one VM, made at the first KVM_RUN.

    :ivar now_ns: guest time.
    """

    def __init__(self, vm: Vm, key: bytes | None) -> None:
        self.vm = vm
        self.key = key
        supervisor = vm.supervisor
        self.engine = Engine()
        target: TargetMemory = supervisor.memory
        self.memory = GuestMemory(self.engine, target, supervisor.process_id, key)
        self.virtual = VirtualMemory(self.engine, self.memory)
        self.events = Events(self.engine, self.virtual)
        self.trace = Trace(supervisor.directory)
        self.devices = Devices(self)
        self.processors: dict[int, Processor] = {}
        self.now_ns = 0
        self.ap_jump_table = 0
        self._current: Processor | None = None
        self._yielded = False
        self._slots: dict[int, tuple[int, int, int, int]] = {}
        self._away_since: float | None = None
        self._idle_until: float | None = None
        self.engine.map_mmio(_MMIO_WINDOW, self._mmio_read_now, self._mmio_write_now)

    # Time

    @property
    def tsc(self) -> int:
        """Time-stamp counter of every vCPU."""
        return self.now_ns * self.vm.supervisor.profile.tsc_khz // 1_000_000

    def time_of_tsc(self, tsc: int) -> int:
        """Guest time at which the counter has this value."""
        return tsc * 1_000_000 // self.vm.supervisor.profile.tsc_khz

    # Turns

    def add(self, vcpu: Vcpu) -> Processor:
        """The processor of a vCPU; those of all are made when one first enters KVM_RUN, by number."""
        if vcpu.identifier not in self.processors:
            for number, other in self.vm.vcpus.items():
                self.processors.setdefault(number, Processor(self, other))
            self.processors = dict(sorted(self.processors.items()))
        return self.processors[vcpu.identifier]

    def bring_back(self, vcpu: Vcpu) -> None:
        """Show KVM's registers what is in the CPU."""
        processor = self.processors.get(vcpu.identifier)
        if processor is not None and processor.entered and not processor.stale:
            self._switch(processor)
            start.read_back(self.engine, vcpu, self.events.flags)

    def restart(self, vcpu: Vcpu) -> None:
        """The VMM has changed registers: start anew from them."""
        processor = self.processors.get(vcpu.identifier)
        if processor is not None:
            processor.restart()

    def work(self) -> float | None:
        """Do one turn; seconds until the next is worth trying, None if only the VMM can go on."""
        self._apply_slots()
        processor = self._next()
        if processor is None:
            return self._idle()
        if not processor.vcpu.in_kvm_run:
            return self._await(processor)
        self._away_since = None
        self._idle_until = None
        self._turn(processor)
        return 0

    def _next(self) -> Processor | None:
        """Whose turn it is: the one that waits for the VMM, or the next that can execute."""
        current = self._current
        if current is not None and current.handling is not None:
            return current
        order = list(self.processors.values())
        first = order.index(current) if current is not None else 0
        if current is not None and (self._yielded or not current.accept_events()):
            first += 1
        for index in range(len(order)):
            processor = order[(first + index) % len(order)]
            if processor.accept_events() or processor.ended is not None:
                self._yielded = False
                return processor
        return None

    def _await(self, processor: Processor) -> float | None:
        """It is not in KVM_RUN: its VMM thread is on the way, or the VMM has stopped the guest."""
        if not any(other.vcpu.in_kvm_run for other in self.processors.values()):
            self._away_since = None
            return None
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        left = self._away_since + _GRACE_S - now
        if left > 0 or processor.handling is not None:
            return max(left, _GRACE_S)
        self._current, self._yielded, self._away_since = processor, True, None
        return 0

    def _idle(self) -> float | None:
        """Every vCPU waits: let guest time run to the next timer, no faster than the clock on the wall."""
        deadlines = [
            processor.lapic.deadline_ns
            for processor in self.processors.values()
            if processor.activity is Activity.HALTED and processor.lapic.deadline_ns is not None
        ]
        self.memory.make_ciphertext()
        if not deadlines or not all(p.vcpu.in_kvm_run for p in self.processors.values()):
            self._idle_until = None
            return None
        now, deadline_ns = time.monotonic(), min(deadlines)
        if self._idle_until is None:
            self._idle_until = now + min((deadline_ns - self.now_ns) / 1e9, _IDLE_S)
        if now < self._idle_until:
            return self._idle_until - now
        self._idle_until = None
        self.now_ns = max(self.now_ns, deadline_ns)
        return 0

    def _turn(self, processor: Processor) -> None:
        self._switch(processor)
        if processor.ended is not None:
            self._leave(processor, processor.ended)
            return
        if processor.handling is not None and not self._resume(processor):
            return
        blocks = _TURN_BLOCKS
        for _ in range(_TURN_EXITS):
            if blocks <= 0 or self._yielded or not processor.accept_events():
                return
            if processor.stale:  # INIT came in between
                processor.take_turn()
            if not self._offer(processor):
                return
            code = self.engine.run(blocks)
            used = self.engine.used(blocks)
            blocks -= used
            self.now_ns += used * _BLOCK_NS
            if code is not None:
                self.now_ns += _EXIT_NS
                self.trace.exit(processor.vcpu.identifier, code, self.engine.state.eip)
            if not self._handle(processor, code):
                return
        self._yielded = True

    def _switch(self, processor: Processor) -> None:
        current = self._current
        if current is processor and not processor.stale:
            return
        if current is not None and current is not processor and current.entered:
            current.end_turn()
        processor.take_turn()
        processor.entered = True
        self._current = processor

    def _offer(self, processor: Processor) -> bool:
        try:
            processor.offer_interrupt()
        except TripleFault:
            return self._go_on(processor, processor.triple_fault())
        return True

    def _handle(self, processor: Processor, code: int | None) -> bool:
        """Handle an exit; whether the turn goes on."""
        try:
            handling = processor.exit(code)
        except TripleFault:
            handling = processor.triple_fault()
        return handling is None or self._go_on(processor, handling)

    def _go_on(self, processor: Processor, handling: exits.Handling) -> bool:
        """Begin a handling; whether it ended without the VMM."""
        try:
            reason = next(handling)
        except StopIteration:
            return True
        processor.handling = handling
        self._leave(processor, reason)
        return False

    def _resume(self, processor: Processor) -> bool:
        """The VMM is back: give the handling what it brought; whether the guest goes on."""
        handling, reason = processor.handling, processor.asked
        assert handling is not None
        assert reason is not None
        self.memory.pull()
        try:
            reason = handling.send(reason.result(processor.vcpu.run))
        except StopIteration:
            processor.handling = None
            return True
        self._leave(processor, reason)
        return False

    def _leave(self, processor: Processor, reason: exits.Exit) -> None:
        """End KVM_RUN."""
        processor.asked = reason
        if not isinstance(reason, exits.PortIo | exits.Mmio):
            processor.handling = None if processor.ended is None else processor.handling
        self.memory.push()
        vcpu = processor.vcpu
        exits.store_common(vcpu.run, interruptible=self.events.interruptible, apic_base=processor.lapic.base)
        vcpu.leave(reason.store(vcpu.run))

    def yield_turn(self) -> None:
        """The current vCPU spins: it is another's turn."""
        self._yielded = True

    # Memory slots

    def _apply_slots(self) -> None:
        if self._slots != self.vm.slots:
            self._slots = dict(self.vm.slots)
            self.memory.set_slots(
                [
                    Slot(gpa, size, address, bool(flags & 2))
                    for number, (gpa, size, address, flags) in self._slots.items()
                    if number >> 16 == 0  # not SMM's address space
                ]
            )

    # Interrupts

    def send(self, sender: Processor, ipi: lapic.Ipi) -> None:
        """Carry out an interrupt command."""
        for processor in self.processors.values():
            if ipi.shorthand == 1:
                wanted = processor is sender
            elif ipi.shorthand:
                wanted = ipi.shorthand == 2 or processor is not sender
            else:
                wanted = processor.lapic.addressed(ipi.destination, ipi.logical)
            if wanted:
                _receive(processor, ipi)

    # Accesses that leave the CPU

    def port_in(self, port: int, size: int, count: int) -> exits.Reading:
        """Read a port, of KVM's own devices or the VMM's."""
        data = self.devices.port_read(port, size, count)
        if data is not None:
            return data
        return (yield exits.PortIo(port, size, count, None))

    def port_out(self, port: int, size: int, data: bytes) -> exits.Handling:
        """Write a port."""
        if not self.devices.port_write(port, size, data):
            yield exits.PortIo(port, size, len(data) // size, data)

    def mmio_read(self, gpa: int, size: int) -> exits.Reading:
        """Read what is not memory, in pieces of at most 8 bytes."""
        out = b""
        while len(out) < size:
            at, length = gpa + len(out), min(size - len(out), 8)
            data = self.devices.mmio_read(at, length)
            out += data if data is not None else (yield exits.Mmio(at, length, None))
        return out

    def mmio_write(self, gpa: int, data: bytes) -> exits.Handling:
        """Write what is not memory."""
        for done in range(0, len(data), 8):
            piece = data[done : done + 8]
            if not self.devices.mmio_write(gpa + done, piece):
                yield exits.Mmio(gpa + done, len(piece), piece)

    @property
    def current(self) -> Processor:
        """Whose turn it is."""
        assert self._current is not None
        return self._current

    def map_mmio(self, gpa: int) -> None:
        """An instruction of a guest without SEV-ES accesses what is not memory: let the engine decode it.

        The page is mapped to a window whose accesses call us in the middle of the instruction.
        """
        self.memory.paging.map(False, gpa & -0x1000, _MMIO_WINDOW + (gpa & 0xFFFFF000), writable=True)
        if self.memory.encrypted:
            self.memory.paging.map(True, gpa & -0x1000, _MMIO_WINDOW + (gpa & 0xFFFFF000), writable=True)

    def _mmio_read_now(self, offset: int, size: int) -> int:
        data = self._complete(self.mmio_read(offset, size))
        return int.from_bytes(data or b"", "little")

    def _mmio_write_now(self, offset: int, size: int, value: int) -> None:
        self._complete(self.mmio_write(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little")))

    def _complete(self, handling: exits.Reading | exits.Handling) -> bytes | None:
        """Drive a handling to its end here and now, serving the VMM meanwhile."""
        processor = self.current
        try:
            reason = next(handling)
            while True:
                self._leave(processor, reason)
                if not self.vm.supervisor.serve_until(processor.vcpu):
                    return None
                self.memory.pull()
                reason = handling.send(reason.result(processor.vcpu.run))
        except StopIteration as end:
            result: bytes | None = end.value
            return result

    def close(self) -> None:
        """The VM is gone."""
        self.trace.write(self)


def _receive(processor: Processor, ipi: lapic.Ipi) -> None:
    if ipi.mode in (lapic.FIXED, lapic.LOWEST):
        processor.lapic.accept(ipi.vector)
    elif ipi.mode == lapic.NMI:
        processor.lapic.nmi = True
    elif ipi.mode == lapic.INIT and ipi.assert_level:
        processor.receive_init()
    elif ipi.mode == lapic.STARTUP:
        processor.receive_sipi(ipi.vector)
