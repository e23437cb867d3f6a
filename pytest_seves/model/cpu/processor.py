# SPDX-License-Identifier: GPL-2.0-or-later
"""One vCPU: its turns on the engine, INIT and SIPI, interrupts.

Source: Linux arch/x86/kvm/x86.c vcpu_block(), kvm_vcpu_has_events(), lapic.c kvm_apic_accept_events(),
svm/svm.c svm_interrupt_blocked(), svm/sev.c sev_vcpu_deliver_sipi_vector().
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from ...spec import ghcb as spec
from ...spec import kvm
from .. import vcpu_reset
from . import control_registers, events, exits, intercepts, lapic, start
from .cpuid_view import CpuidView
from .engine import EngineFailure
from .ghcb import Ghcb
from .lapic import EOI, TPR, Ipi, Lapic
from .layout import CS, HF_CS64, HF_INHIBIT_IRQ
from .native import SYSCALL
from .virtual_memory import CR0_PG, CR4_PAE, PageFault

if TYPE_CHECKING:
    from ..kvm_vcpu import Vcpu
    from .guest_memory import GuestMemory
    from .machine import Machine


#: More pages than one instruction can need, and the tables that lead to them.
_OFTEN = 100


class Activity(Enum):
    """What a vCPU is doing, as kvm_mp_state has it."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    RESET_HOLD = 9


_RUNNABLE = Activity.RUNNABLE


class Processor:
    """One vCPU of a machine.

    :ivar context: its state between turns; None before it has started.
    :ivar handling: an exit that waits for the VMM; `asked` is what for.
    :ivar ended: how every KVM_RUN ends from now on.
    :ivar entered: it has had a turn; `stale`: it has to start anew from the registers that KVM holds.
    :ivar absent: its turn has come and its VMM thread has not, for too long.
    """

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.es = vcpu.vm.es
        self.engine = machine.engine
        self.state = machine.engine.state
        self._code_segment = machine.engine.state.segs[CS]
        self.memory: GuestMemory = machine.memory
        self.lapic = Lapic(vcpu.identifier, bootstrap=vcpu.identifier == 0)
        if vcpu.lapic_page is not None:
            self.lapic.restore(vcpu.lapic_page, machine.now_ns)
        self.cpuid = CpuidView(b"", encrypted=False)
        self.ghcb = Ghcb(self)
        self.context: Any = None
        self.handling: exits.Handling | None = None
        self.asked: exits.Exit | None = None
        self.ended: exits.Exit | None = None
        self.entered = False
        self.absent = not vcpu.vm.in_kernel_lapic  # then the VMM decides which vCPUs run
        self.stale = True
        self._standing = False
        self._on_engine = False
        self._interruptible_then = False
        self.activity = Activity.RUNNABLE
        self.set_activity(vcpu.mp_state)
        self.take_apic_base()
        self.exits = 0
        self.last_rip = 0
        self.engine.control.sev_status = self.sev_status
        self._sipi: int | None = None
        self._init = False
        self._first_sipi_received = False
        self._hangs = False
        self._begun: tuple[int, int] = 0, 0
        self._vector: int | None = None
        self._window = False
        self._standing = False

    @property
    def sev_status(self) -> int:
        """SEV_STATUS, which no hypervisor intercepts."""
        if not self.memory.encrypted:
            return 0
        return spec.SEV_STATUS_SEV | (spec.SEV_STATUS_SEV_ES if self.es else 0)

    def describe(self) -> dict[str, object]:
        """How it stands, for evidence."""
        return {
            "vcpu": self.vcpu.identifier,
            "activity": self.activity.name,
            "exits": self.exits,
            "rip": f"{self.last_rip:#x}",
            "ghcb_msr": f"{self.ghcb.msr:#x}" if self.es else None,
            "waits_for_vmm": self.handling is not None,
        }

    # Turns

    def take_turn(self) -> None:
        """Become the engine's current vCPU."""
        self._on_engine = True
        if self.stale:
            self.stale, self._standing = False, False
            self.cpuid = CpuidView(self.vcpu.cpuid, encrypted=self.memory.encrypted)
            values = start.save_area(self.vcpu, self.machine.key)
            if self._vector is not None:
                values, self._vector = start.at_vector(values, self._vector), None
            hide = self.es and not values["sev_features"] & 1 << 5  # DebugSwap
            start.enter(self.engine, self.memory.paging.nested_cr3, values, hide_dr7=hide)
            c_bit = values["cr0"] & CR0_PG and values["cr4"] & CR4_PAE
            self.memory.paging.select(self.memory.encrypted and not c_bit)
        else:
            self.engine.restore(self.context)
            self.select_paging()

    def end_turn(self) -> None:
        """Keep the state for the next one."""
        self.track()
        self.context = self.engine.save(self.context)
        self._on_engine, self._interruptible_then = False, self.machine.events.interruptible

    def track(self) -> None:
        """KVM's own copies of CR0 and CR4, whose write traps are no exits in 64-bit code."""
        if self._standing and not self.stale:
            control_registers.track(self, cr0=self.state.cr[0], cr4=self.state.cr[4])

    def set_activity(self, state: int) -> None:
        """KVM_SET_MP_STATE; states of SMM and others that the model lacks count as runnable."""
        known = [activity.value for activity in Activity]
        self.activity = Activity(state) if state in known else Activity.RUNNABLE

    def take_apic_base(self) -> None:
        """The APIC base register as KVM_SET_SREGS has it."""
        at = kvm.SREGS.field("apic_base").offset
        self.lapic.base = int.from_bytes(self.vcpu.sregs[at : at + 8], "little")

    def restart(self) -> None:
        """Start anew from the registers that KVM holds."""
        self.context = None
        self.handling = None
        self.ended = None
        self.stale = True

    def select_paging(self) -> None:
        """After a change of the paging mode."""
        self.memory.paging.select(self.memory.encrypted and not self.machine.virtual.has_c_bit)

    # Interrupts

    def accept_events(self) -> bool:
        """INIT and SIPI, kvm_apic_accept_events(); whether the vCPU can execute."""
        if self.activity is _RUNNABLE and not self._init and self._sipi is None:  # at nearly each exit
            return not self._hangs
        if self._init:
            self._init = False
            self.lapic.reset()
            if not self.es:
                self._reset()
            self.activity = Activity.RUNNABLE if self.vcpu.identifier == 0 else Activity.INIT_RECEIVED
        if self._sipi is not None:
            vector, self._sipi = self._sipi, None
            if self.activity is Activity.INIT_RECEIVED:
                self._start_by(vector)
            if self.activity is not Activity.UNINITIALIZED:  # without INIT it only wakes
                self.activity = Activity.RUNNABLE
        if self.activity in (Activity.HALTED, Activity.RESET_HOLD) and self._wakes():
            self.activity = Activity.RUNNABLE
        return self.activity is Activity.RUNNABLE and not self._hangs

    def _reset(self) -> None:
        """kvm_vcpu_reset() on INIT: the registers of a vCPU that is not protected."""
        bootstrap = self.vcpu.identifier == 0
        registers = kvm.REGS.decode(vcpu_reset.REGS)
        self.vcpu.regs = kvm.REGS.encode(**{**registers, "rdx": self.cpuid(1, 0)[0]})
        self.vcpu.sregs = vcpu_reset.sregs(bootstrap=bootstrap, apic_base=self.lapic.base)
        self._vector = None
        self.restart()

    def _wakes(self) -> bool:
        """kvm_vcpu_has_events(): an interrupt that the vCPU would not take does not end its wait."""
        self._tick()
        if self.lapic.nmi:
            return True
        return (self.lapic.pending is not None or self._external) and self._interruptible

    @property
    def _interruptible(self) -> bool:
        """By what it is on the engine, what it was after its last turn, or what KVM's registers hold."""
        if self.stale:
            return bool(kvm.REGS.decode(self.vcpu.regs)["rflags"] & events.FLAGS_IF)
        return self.machine.events.interruptible if self._on_engine else self._interruptible_then

    def _tick(self) -> None:
        now_ns, irqchip = self.machine.now_ns, self.machine.devices.irqchip
        self.lapic.tick(now_ns)
        if irqchip.pit.deadline_ns is not None:
            irqchip.tick(now_ns)

    @property
    def _external(self) -> bool:
        """The PICs' interrupt is for this one, kvm_cpu_has_extint()."""
        return self.machine.devices.external_pending and self.lapic.accepts_external

    def _start_by(self, vector: int) -> None:
        """The first SIPI of a SEV-ES vCPU starts its save area as measured, the others end a reset hold."""
        first = not self._first_sipi_received
        if not self.es or (first and self.vcpu.profile.wrong_sipi_start):
            self._vector = vector
        elif self._first_sipi_received:
            self.ghcb.woken()
        self._first_sipi_received = True

    def halt(self) -> None:
        """HLT: until an interrupt."""
        self.activity = Activity.HALTED

    def hold(self) -> None:
        """AP reset hold: until a SIPI."""
        self.activity = Activity.RESET_HOLD

    def receive(self, ipi: Ipi, *, level: bool = False) -> bool:
        """An interrupt arrives, __apic_accept_irq(); whether it is taken."""
        if ipi.mode in (lapic.FIXED, lapic.LOWEST):
            return self.lapic.accept(ipi.vector, level=level)
        if ipi.mode == lapic.NMI:
            self.lapic.nmi = True
        elif ipi.mode == lapic.INIT and ipi.assert_level:
            self.receive_init()
        elif ipi.mode == lapic.STARTUP:
            self.receive_sipi(ipi.vector)
        else:
            return False
        return True

    def receive_init(self) -> None:
        """INIT arrives."""
        self._init = True
        self._sipi = None

    def receive_sipi(self, vector: int) -> None:
        """SIPI arrives."""
        if not (self.es and self._loses_sipi):
            self._sipi = vector

    @property
    def _loses_sipi(self) -> bool:
        if self._first_sipi_received:
            return self.vcpu.profile.wrong_hold_lost
        return self.vcpu.profile.wrong_ap_lost and self.vcpu.identifier == max(self.machine.processors)

    def offer_interrupt(self) -> None:
        """Deliver what is pending if the guest takes it, otherwise ask for the moment when it does."""
        self._tick()
        vector, external = self.lapic.pending, self._external
        wanted = vector is not None or self.lapic.nmi or external
        if wanted and self.context_entered and self.machine.events.interruptible:
            if self.lapic.nmi:
                self.lapic.nmi = False
                vector = 2
            elif external:
                vector = self.machine.devices.irqchip.pics.acknowledge()
            elif vector is not None:
                self.lapic.acknowledge(vector)
            self.machine.trace.interrupt(vector or 0)
            self.machine.events.deliver(vector or 0)
            wanted = self.lapic.pending is not None or self._external
        self._window = wanted
        self.engine.want_interrupt_window(wanted)
        self.engine.watch_task_priority(self.lapic.requested != 0 and self.lapic.pending is None)
        self.engine.control.ghcb = self.ghcb.msr

    def waits_on(self) -> None:
        """Memory has come, which is no exit: nothing is offered now, but its moment is asked for anew."""
        self.engine.want_interrupt_window(self._window)

    @property
    def context_entered(self) -> bool:
        """Whether the guest has begun: before, the engine stands before its VMRUN."""
        return self._standing

    def write_lapic(self, register: int, value: int) -> None:
        """A write that may send an interrupt."""
        served = self.lapic.highest_in_service if register == EOI else 0
        ipi = self.lapic.write(register, value, self.machine.now_ns)
        if served:
            level = bool(self.lapic.level >> served & 1)
            self.machine.devices.irqchip.ioapic.end_of_interrupt(served, level=level)
        if ipi is not None:
            self.machine.send(self, ipi)
        if register == TPR:
            self.engine.task_priority.value = self.lapic.task_priority_class

    # Exits

    def exit(self, code: int | None) -> exits.Handling | None:
        """Handle an exit; what is left to do if the VMM has to be asked."""
        self.stands()
        self._begun = 0, 0
        if code is None:
            return None
        self.exits += 1
        try:
            if code == -SYSCALL:
                self.machine.events.system_call()
                return None
            if code < 0:
                self.machine.events.deliver(-code, software=True)
                return None
            return intercepts.handle(self, code)
        except PageFault as fault:  # while operands were read: the guest's own fault
            self.state.cr[2] = fault.address
            self.machine.events.deliver(events.PAGE_FAULT, fault.error)
            return None

    def stands(self) -> None:
        """The guest has begun, and is at RIP now."""
        self._standing = True
        self.last_rip = self.state.eip
        self.lapic.task_priority_class = self.engine.task_priority.value
        self.ghcb.msr = self.engine.control.ghcb

    def begins_again(self, blocks: int) -> None:
        """Memory has come for the instruction at RIP, since when `blocks` were executed.

        :raise EngineFailure: it needs a page with and without the C-bit, and a page is one of them at a time.
        """
        self.stands()
        at, times = self._begun
        times = times + 1 if at == self.last_rip and not blocks else 0
        self._begun = self.last_rip, times
        if times > _OFTEN:
            raise EngineFailure(f"at {self.last_rip:#x}: a page is needed private and shared at once")

    def advance(self, length: int) -> None:
        """The instruction is done."""
        state = self.state
        mask = (1 << 64) - 1 if state.hflags & HF_CS64 else 0xFFFFFFFF
        state.eip = state.eip + length & mask
        state.hflags &= ~HF_INHIBIT_IRQ

    def vc(self, code: int) -> None:
        """#VC: the guest's own handler has to ask for it."""
        self.machine.events.deliver(events.VMM_COMMUNICATION, code)

    @property
    def linear_ip(self) -> int:
        """Where the instruction is."""
        return int(self._code_segment.base + self.state.eip)

    def code(self, size: int) -> bytes:
        """Instruction bytes, as many as there are before a page that is not there."""
        at = self.linear_ip
        try:
            return self.machine.virtual.read(at, size, code=True)
        except PageFault:
            return self.machine.virtual.read(at, min(size, 0x1000 - at % 0x1000), code=True)

    def triple_fault(self) -> exits.Handling:
        """Event delivery gave up, or the SHUTDOWN intercept: the end of this vCPU."""
        self.machine.trace.note(f"vCPU {self.vcpu.identifier}: triple fault")
        if self.es and self.vcpu.profile.wrong_triple_fault_hangs:
            return self._hang()
        return self.end(exits.Shutdown(failed=self.es and not self.vcpu.profile.shutdown_exit))

    def end(self, reason: exits.Exit) -> exits.Handling:
        """Every KVM_RUN ends so from now on."""
        self.ended = reason
        yield reason

    def _hang(self) -> exits.Handling:
        self._hangs = True
        yield from ()
