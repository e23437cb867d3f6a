# SPDX-License-Identifier: GPL-2.0-or-later
"""All vCPUs of a VM on one engine: turns, guest time, and exits to the VMM.

One vCPU executes at a time, in turns that end by its own doing: after a number of exits or of blocks, at
PAUSE or when it halts. While one waits for the VMM to complete an access, none executes. So the order in
which things happen does not depend on how fast anything is, and the same launch goes the same way twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..memory import TargetMemory
from . import exits, intercepts, lapic, start, vmcb
from .accesses import Accesses
from .devices import TRIP_NS, Devices
from .engine import Engine, EngineFailure
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
_GRACE_S = 1.0
_IDLE_S = 0.01
_TURNS_BETWEEN_LOOKS = 64
#: A device that was signalled works meanwhile: for so many turns its answer is looked for after each.
_TURNS_OF_A_DEVICE = 64
_CIPHERTEXT_AT_A_LOOK = 8
_CIPHERTEXT_WHEN_STOPPED = 256


class Machine:
    """The processors of one VM, made at the first KVM_RUN.

    :ivar now_ns: guest time.
    """

    def __init__(self, vm: Vm, key: bytes | None) -> None:
        self.vm = vm
        self.key = key
        supervisor = vm.supervisor
        self.engine = Engine()
        self.engine.control.encrypted = vm.es
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
        self._chosen: Processor | None = None
        self._slots: dict[int, tuple[int, int, int, int]] = {}
        self._away_since: float | None = None
        self._idle_until: float | None = None
        self._turns = 0
        self._pull = False
        self._looks_left = 0
        self.in_instruction = False
        self.accesses = Accesses(self)

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
        self.processors[vcpu.identifier].absent = False
        return self.processors[vcpu.identifier]

    def bring_back(self, vcpu: Vcpu) -> None:
        """Show KVM's registers what is in the CPU; of a protected one what write traps tell."""
        processor = self.processors.get(vcpu.identifier)
        if processor is None or not processor.entered or processor.stale:
            return
        if vcpu.protected and not vcpu.profile.wrong_registers_shown:
            if processor is self._current:
                processor.track()
            return
        if processor is self._current or not self.in_instruction:
            self._switch(processor)
            start.read_back(self.engine, vcpu, self.events.flags)

    def overwrite(self, vcpu: Vcpu, registers: Mapping[str, int]) -> None:
        """Change registers, by their names in kvm_regs, of a vCPU that has begun."""
        processor = self.processors.get(vcpu.identifier)
        if processor is None or not processor.context_entered:
            return
        if processor is self._current or not self.in_instruction:
            self._switch(processor)
            start.overwrite(self.engine, registers)

    def restart(self, vcpu: Vcpu) -> None:
        """The VMM has changed registers: start anew from them."""
        processor = self.processors.get(vcpu.identifier)
        if processor is not None and not vcpu.protected:
            processor.restart()

    def activity(self, vcpu: Vcpu) -> int:
        """Its kvm_mp_state."""
        processor = self.processors.get(vcpu.identifier)
        return processor.activity.value if processor is not None else vcpu.mp_state

    def set_activity(self, vcpu: Vcpu) -> None:
        """The VMM has set its kvm_mp_state."""
        if vcpu.identifier in self.processors:
            self.processors[vcpu.identifier].set_activity(vcpu.mp_state)

    def lapic_of(self, vcpu: Vcpu) -> lapic.Lapic | None:
        """Its local APIC, once it has begun."""
        processor = self.processors.get(vcpu.identifier)
        return processor.lapic if processor is not None else None

    def set_apic_base(self, vcpu: Vcpu) -> None:
        """The VMM has set the APIC base register."""
        if vcpu.identifier in self.processors:
            self.processors[vcpu.identifier].take_apic_base()

    def nmi(self, vcpu: Vcpu) -> None:
        """KVM_NMI."""
        if vcpu.identifier in self.processors:
            self.processors[vcpu.identifier].lapic.nmi = True

    def leaving(self, *, stopped: bool) -> None:
        """A KVM_RUN ends: the VMM sees memory as the guest left it."""
        self.memory.push()
        self._pull = True
        if stopped:
            self.memory.make_ciphertext(_CIPHERTEXT_WHEN_STOPPED)

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
        self._chosen = None
        self._turns += 1
        if self._turns % _TURNS_BETWEEN_LOOKS == 0:
            self.memory.make_ciphertext(_CIPHERTEXT_AT_A_LOOK)
            self.look()
        elif self._pull or self._looks_left:
            self._looks_left = max(self._looks_left - 1, 0)
            self.look()
        try:
            self._turn(processor)
        except EngineFailure as failure:
            self.trace.note(f"vCPU {processor.vcpu.identifier}: {failure}")
            processor.ended = exits.INTERNAL_ERROR
            self.leave(processor, exits.INTERNAL_ERROR)
        return 0

    def look(self) -> None:
        """Exchange memory with a VMM whose devices work while the guest executes."""
        self._pull = False
        self.memory.push()
        self.memory.pull()

    def show_memory(self) -> None:
        """The VMM is about to hear of the guest, which goes on: it sees memory as the guest left it."""
        self.memory.push()
        self._looks_left = _TURNS_OF_A_DEVICE

    def will_look(self) -> None:
        """The VMM has something for the guest, and may have written memory before."""
        self._pull = True

    def _next(self) -> Processor | None:
        """Whose turn it is: the one that waits for the VMM, or the next that can execute."""
        current = self._current
        if current is not None and current.handling is not None:
            return current
        chosen = self._chosen
        if chosen is not None and _ready(chosen):
            return chosen  # its turn has come, though it was not there
        order = list(self.processors.values())
        first = order.index(current) if current is not None else 0
        if current is not None and (self._yielded or not current.accept_events()):
            first += 1
        for index in range(len(order)):
            processor = order[(first + index) % len(order)]
            if _ready(processor):
                self._yielded, self._chosen = False, processor
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
            return max(left, 0.0) or _GRACE_S
        processor.absent, self._away_since = True, None
        return 0

    def _idle(self) -> float | None:
        """Every vCPU waits: let guest time run to the next timer, no faster than the clock on the wall."""
        deadlines = [
            processor.lapic.deadline_ns
            for processor in self.processors.values()
            if processor.activity is Activity.HALTED and processor.lapic.deadline_ns is not None
        ]
        if self.devices.irqchip.pit.deadline_ns is not None:
            deadlines.append(self.devices.irqchip.pit.deadline_ns)
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
        if processor.stale and not processor.vcpu.may_enter:
            self.leave(processor, exits.INVALID_STATE)
            return
        self._switch(processor)
        if processor.ended is not None:
            self.leave(processor, processor.ended)
            return
        if processor.handling is not None and not self._resume(processor):
            return
        blocks, left, comes = _TURN_BLOCKS, _TURN_EXITS, False
        while left and blocks > 0 and not self._yielded and processor.accept_events():
            if processor.stale:  # INIT came in between
                processor.take_turn()
            if comes:
                processor.waits_on()
            elif not self._offer(processor):
                return
            code = self.engine.run(blocks)
            used = self.engine.used(blocks)
            comes = code == vmcb.NPF and intercepts.memory_comes(processor)
            if comes and used and not intercepts.fetches(processor):  # outside of guest time
                used -= 1  # the block goes on, and is counted then
            blocks -= used
            self.now_ns += used * _BLOCK_NS
            if comes:
                processor.begins_again(used)
                continue
            if code is not None:
                left -= 1
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
            return self._go_on(processor, processor.triple_fault()) and processor.accept_events()
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
        self.leave(processor, reason)
        return False

    def _resume(self, processor: Processor) -> bool:
        """The VMM is back: give the handling what it brought; whether the guest goes on."""
        handling, reason = processor.handling, processor.asked
        assert handling is not None
        assert reason is not None
        try:
            reason = handling.send(reason.result(processor.vcpu.run))
        except StopIteration:
            processor.handling = None
            return True
        self.leave(processor, reason)
        return False

    def leave(self, processor: Processor, reason: exits.Exit) -> None:
        """End KVM_RUN of a vCPU."""
        processor.asked = reason
        if isinstance(reason, exits.PortIo | exits.Mmio):
            self.now_ns += TRIP_NS
            self.trace.access(self.now_ns)
        else:
            processor.handling = None if processor.ended is None else processor.handling
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
                processor.receive(ipi)

    @property
    def current(self) -> Processor:
        """Whose turn it is."""
        assert self._current is not None
        return self._current

    def close(self) -> None:
        """The VM is gone."""
        self.trace.write(self)


def _ready(processor: Processor) -> bool:
    """Whether it can have a turn, or has an end to tell."""
    if processor.ended is not None:
        return processor.vcpu.in_kvm_run
    return processor.accept_events() and not processor.absent
