# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU descriptor: Linux 6.1 arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl(), and KVM_RUN.

KVM_RUN is left unanswered while the guest executes (cpu/). With ``:execute=N`` the guest is one that loops
for ever, and KVM_RUN ends only when the VMM kicks the thread.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ..spec import kvm
from . import vcpu_exposed, vcpu_fpu, vcpu_lapic, vcpu_msrs, vcpu_reset
from .cpu.exits import INVALID_STATE
from .long_mode import valid_sregs
from .vcpu_fpu import FpuState

if TYPE_CHECKING:
    from .kvm_vm import Vm
    from .supervisor import Call

_RUN_IMMEDIATE_EXIT, _RUN_EXIT_REASON = 1, 8
_RUN_APIC_BASE = 24
_RUNNABLE = 0  # KVM_MP_STATE_RUNNABLE; others wait for a SIPI before they are entered
_RUN_SYNC_REGS = 288  # kvm_valid_regs, kvm_dirty_regs
_EXIT_INTR = 10
_SREGS2_FLAG_PDPTRS = 1
_CONTROL = slice(kvm.SREGS.field("cr0").offset, kvm.SREGS.field("interrupt_bitmap").offset)
_CR2_CR3 = slice(kvm.SREGS.field("cr2").offset, kvm.SREGS.field("cr4").offset)
_APIC_BASE = kvm.SREGS.field("apic_base").offset


class Vcpu:
    """One virtual CPU.

    :ivar vmsa: the encrypted save area, once LAUNCH_UPDATE_VMSA has made it: the vCPU's state is protected.
    :ivar vmsa_address: where that lies in the host's memory, by which its encryption is tweaked.
    :ivar run: our mapping of its kvm_run page.
    :ivar waiting: the KVM_RUN that is not answered yet.
    """

    requests: ClassVar[Mapping[int, Callable[..., int | None]]]
    unknown_errno: ClassVar[int] = errno.EINVAL
    run: mmap.mmap

    def __init__(self, vm: Vm, identifier: int) -> None:
        self.vm = vm
        self.identifier = identifier
        self.vmsa: bytes | None = None
        self.vmsa_address = 0
        self.waiting: int | None = None
        self.guest_debug = False
        self.regs = vcpu_reset.REGS
        self.sregs = vcpu_reset.sregs(bootstrap=identifier == 0)
        self.debugregs = vcpu_reset.DEBUGREGS
        self.xcrs = vcpu_reset.XCRS
        self.fpu = FpuState()
        self.msrs: dict[int, int] = dict(vcpu_reset.MSRS)
        self.mp_state = 0 if identifier == 0 or not vm.in_kernel_lapic else 1
        self.memory = vm.supervisor.memory
        self.profile = vm.supervisor.profile
        self.cpuid = b""
        self._tsc_khz = self.profile.tsc_khz
        self.lapic_page: bytes | None = None
        self._state: dict[int, bytes] = {}

    def closed(self) -> None:
        """A vCPU lives as long as its VM."""

    @property
    def protected(self) -> bool:
        """guest_state_protected."""
        return self.vmsa is not None

    @property
    def sealed(self) -> bool:
        """Protected, and of a VM type for which KVM refuses to touch such state."""
        return self.protected and self.vm.has_protected_state and not self.profile.wrong_registers_open

    @property
    def dr7(self) -> int:
        """DR7 as the VMCB holds it."""
        return int(struct.unpack_from("<Q", self.debugregs, 40)[0])

    @property
    def xcr0(self) -> int:
        """XCR0, from KVM_SET_XCRS."""
        return int(struct.unpack_from("<Q", self.xcrs, 16)[0])

    # Execution

    def enter(self, call: Call) -> int | None:
        """KVM_RUN."""
        self.vm.supervisor.vcpu_of_thread[call.thread] = self
        valid, dirty = struct.unpack_from("<QQ", self.run, _RUN_SYNC_REGS)
        if (valid | dirty) & ~self._sync_regs:
            return -errno.EINVAL
        if self.run[_RUN_IMMEDIATE_EXIT]:
            self.interrupted()
            return -errno.EINTR
        if self.vm.need_init:
            return -errno.EINVAL
        if self.mp_state == _RUNNABLE and not self.may_enter:
            return INVALID_STATE.store(self.run)
        self.vm.supervisor.park(call, self)
        return None

    @property
    def may_enter(self) -> bool:
        """False for a vCPU of a SEV-ES guest that was never measured: VMRUN refuses its save area."""
        return self.protected or not self.vm.es or self.profile.wrong_late_vcpu

    @property
    def _sync_regs(self) -> int:
        """kvm_sync_valid_fields()."""
        hidden = self.vm.has_protected_state
        return 0 if hidden else self.profile.capability(kvm.KVM_CAP_SYNC_REGS)

    @property
    def in_kvm_run(self) -> bool:
        """Whether a thread of the VMM is in KVM_RUN."""
        return self.waiting is not None

    def leave(self, result: int) -> None:
        """End KVM_RUN."""
        identifier, self.waiting = self.waiting, None
        if identifier is None:
            return
        if self.vm.machine is not None:
            self.vm.machine.leaving(stopped=result == -errno.EINTR)
        self.vm.supervisor.answer(identifier, result)

    def interrupted(self) -> None:
        """KVM_RUN ends with EINTR."""
        self._write_run(_RUN_EXIT_REASON, "<I", _EXIT_INTR)
        self.run[_RUN_APIC_BASE : _RUN_APIC_BASE + 8] = self.sregs[_APIC_BASE : _APIC_BASE + 8]

    def request_immediate_exit(self) -> None:
        """What the VMM's signal handler would do to a thread on its way into KVM_RUN."""
        self.run[_RUN_IMMEDIATE_EXIT] = 1

    def _write_run(self, offset: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.run, offset, *values)

    # Registers

    def get_regs(self, call: Call) -> int:
        """KVM_GET_REGS; of a protected vCPU KVM's shadow, which only VMGEXITs change."""
        self._bring_back()
        self.memory.write(call.argument, self.regs)
        return 0

    def _bring_back(self) -> None:
        """Registers as they are in the CPU, unless they are in a save area that nobody can read."""
        if self.vm.machine is not None:
            self.vm.machine.bring_back(self)

    def set_regs(self, call: Call) -> int:
        """KVM_SET_REGS."""
        raw = self.memory.read(call.argument, call.size)
        self._bring_back()
        if raw != self.regs:
            self.regs = raw
            self.vm.restart(self)
        return 0

    def get_sregs(self, call: Call) -> int:
        """KVM_GET_SREGS: of a protected vCPU only CR0, CR4, CR8, EFER and APIC base are known."""
        self.memory.write(call.argument, self._visible_sregs())
        return 0

    def get_sregs2(self, call: Call) -> int:
        """KVM_GET_SREGS2."""
        self.memory.write(call.argument, self._visible_sregs()[: _CONTROL.stop].ljust(call.size, b"\0"))
        return 0

    def _visible_sregs(self) -> bytes:
        self._bring_back()
        if not self.protected or vcpu_exposed.shown(self):
            return self.sregs
        out = bytearray(len(self.sregs))
        out[_CONTROL] = self.sregs[_CONTROL]
        out[_CR2_CR3] = bytes(16)
        return bytes(out)

    def set_sregs(self, call: Call) -> int:
        """KVM_SET_SREGS: of a protected vCPU checked, then ignored but for the APIC base."""
        return self._set_sregs(self.memory.read(call.argument, call.size))

    def set_sregs2(self, call: Call) -> int:
        """KVM_SET_SREGS2."""
        raw = self.memory.read(call.argument, call.size)
        flags = struct.unpack_from("<Q", raw, _CONTROL.stop)[0]
        if flags & ~_SREGS2_FLAG_PDPTRS or (flags and self.protected):
            return -errno.EINVAL
        return self._set_sregs(raw[: _CONTROL.stop].ljust(len(self.sregs), b"\0"))

    def _set_sregs(self, raw: bytes) -> int:
        if not valid_sregs(raw):
            return -errno.EINVAL
        self._bring_back()
        base = raw[_APIC_BASE : _APIC_BASE + 8]
        self.sregs = self.sregs[:_APIC_BASE] + base + self.sregs[_APIC_BASE + 8 :]
        if self.vm.machine is not None:
            self.vm.machine.set_apic_base(self)
        if not self.protected and raw != self.sregs:
            self.sregs = raw
            self.vm.restart(self)
        return 0

    def get_debugregs(self, call: Call) -> int:
        """KVM_GET_DEBUGREGS."""
        self.memory.write(call.argument, self.debugregs)
        return 0

    def set_debugregs(self, call: Call) -> int:
        """KVM_SET_DEBUGREGS."""
        raw = self.memory.read(call.argument, call.size)
        fields = kvm.DEBUGREGS.decode(raw)
        if fields["flags"] or fields["dr6"] >> 32 or fields["dr7"] >> 32:
            return -errno.EINVAL
        self.debugregs = raw
        return 0

    def get_xcrs(self, call: Call) -> int:
        """KVM_GET_XCRS."""
        self.memory.write(call.argument, self.xcrs)
        return 0

    def set_xcrs(self, call: Call) -> int:
        """KVM_SET_XCRS."""
        raw = self.memory.read(call.argument, call.size)
        count, flags = struct.unpack_from("<II", raw)
        if count > 16 or flags:
            return -errno.EINVAL
        self.xcrs = raw
        return 0

    # CPUID, TSC, interrupts, debugging

    def set_cpuid2(self, call: Call) -> int:
        """KVM_SET_CPUID2."""
        (count,) = struct.unpack("<I", self.memory.read(call.argument, 4))
        if count > 256:
            return -errno.E2BIG
        self.cpuid = self.memory.read(call.argument, 8 + 40 * count)
        return 0

    def get_cpuid2(self, call: Call) -> int:
        """KVM_GET_CPUID2."""
        (room,) = struct.unpack("<I", self.memory.read(call.argument, 4))
        if room * 40 < len(self.cpuid) - 8:
            return -errno.E2BIG
        self.memory.write(call.argument, self.cpuid or bytes(8))
        return 0

    def set_tsc_khz(self, call: Call) -> int:
        """KVM_SET_TSC_KHZ."""
        self._tsc_khz = call.argument or self.profile.tsc_khz
        return 0

    def get_tsc_khz(self, _: Call) -> int:
        """KVM_GET_TSC_KHZ."""
        return self._tsc_khz

    def set_guest_debug(self, call: Call) -> int:
        """KVM_SET_GUEST_DEBUG: not on a protected vCPU."""
        control = struct.unpack_from("<I", self.memory.read(call.argument, call.size))[0]
        if self.protected and not self.profile.wrong_guest_debug:
            return -errno.EINVAL
        self.guest_debug = bool(control & 1)
        return 0

    def smi(self, _: Call) -> int:
        """KVM_SMI."""
        return 0 if not self.vm.es or self.profile.smi_on_es else -errno.ENOTTY

    def get_mp_state(self, call: Call) -> int:
        """KVM_GET_MP_STATE."""
        if self.vm.machine is not None:
            self.mp_state = self.vm.machine.activity(self)
        self.memory.write(call.argument, struct.pack("<I", self.mp_state))
        return 0

    def set_mp_state(self, call: Call) -> int:
        """KVM_SET_MP_STATE: other states than runnable need the in-kernel LAPIC."""
        (state,) = struct.unpack("<I", self.memory.read(call.argument, 4))
        if state and not self.vm.in_kernel_lapic:
            return -errno.EINVAL
        self.mp_state = state
        if self.vm.machine is not None:
            self.vm.machine.set_activity(self)
        return 0

    def enable_capability(self, call: Call) -> int:
        """KVM_ENABLE_CAP on a vCPU."""
        fields = kvm.ENABLE_CAP.decode(self.memory.read(call.argument, kvm.ENABLE_CAP.size))
        return 0 if self.profile.capabilities.get(fields["cap"]) else -errno.EINVAL

    def keep(self, call: Call) -> int:
        """Keep the argument structure for the request that reads it back."""
        self._state[call.request] = self.memory.read(call.argument, call.size) if call.size else b""
        return 0

    def get_events(self, call: Call) -> int:
        """KVM_GET_VCPU_EVENTS."""
        self.memory.write(call.argument, self._state.get(kvm.KVM_SET_VCPU_EVENTS, bytes(call.size)))
        return 0

    def get_nested_state(self, call: Call) -> int:
        """KVM_GET_NESTED_STATE: format SVM, not in guest mode: the header alone."""
        _, _, room = struct.unpack("<HHI", self.memory.read(call.argument, 8))
        if room < 128:
            return -errno.E2BIG
        self.memory.write(call.argument, struct.pack("<HHI", 0x100, 1, 128).ljust(128, b"\0"))
        return 0

    def accept(self, call: Call) -> int:
        """Requests whose effect needs an executing guest."""
        if call.size:
            self.memory.read(call.argument, call.size)
        return 0


def _unless_sealed(run: Callable[[Vcpu, Call], int]) -> Callable[[Vcpu, Call], int]:
    """EINVAL on a vCPU whose state is protected, for the VM types that have_protected_state."""

    def checked(vcpu: Vcpu, call: Call) -> int:
        return -errno.EINVAL if vcpu.sealed else run(vcpu, call)

    return checked


Vcpu.requests = {
    kvm.KVM_RUN: Vcpu.enter,
    kvm.KVM_GET_REGS: _unless_sealed(Vcpu.get_regs),
    kvm.KVM_SET_REGS: _unless_sealed(vcpu_exposed.set_regs),
    kvm.KVM_GET_SREGS: _unless_sealed(Vcpu.get_sregs),
    kvm.KVM_SET_SREGS: _unless_sealed(Vcpu.set_sregs),
    kvm.KVM_GET_SREGS2: _unless_sealed(Vcpu.get_sregs2),
    kvm.KVM_SET_SREGS2: _unless_sealed(Vcpu.set_sregs2),
    kvm.KVM_GET_DEBUGREGS: _unless_sealed(Vcpu.get_debugregs),
    kvm.KVM_SET_DEBUGREGS: _unless_sealed(Vcpu.set_debugregs),
    kvm.KVM_GET_XCRS: _unless_sealed(Vcpu.get_xcrs),
    kvm.KVM_SET_XCRS: _unless_sealed(Vcpu.set_xcrs),
    kvm.KVM_GET_FPU: _unless_sealed(vcpu_fpu.get_fpu),
    kvm.KVM_SET_FPU: _unless_sealed(vcpu_fpu.set_fpu),
    kvm.KVM_GET_XSAVE: _unless_sealed(vcpu_fpu.get_xsave),
    kvm.KVM_GET_XSAVE2: _unless_sealed(vcpu_fpu.get_xsave),
    kvm.KVM_SET_XSAVE: _unless_sealed(vcpu_fpu.set_xsave),
    kvm.KVM_GET_MSRS: vcpu_msrs.get_msrs,
    kvm.KVM_SET_MSRS: vcpu_msrs.set_msrs,
    kvm.KVM_SET_CPUID2: Vcpu.set_cpuid2,
    kvm.KVM_GET_CPUID2: Vcpu.get_cpuid2,
    kvm.KVM_SET_TSC_KHZ: Vcpu.set_tsc_khz,
    kvm.KVM_GET_TSC_KHZ: Vcpu.get_tsc_khz,
    kvm.KVM_SET_GUEST_DEBUG: Vcpu.set_guest_debug,
    kvm.KVM_SMI: Vcpu.smi,
    kvm.KVM_NMI: lambda vcpu, _: vcpu.vm.nmi(vcpu),
    kvm.KVM_GET_MP_STATE: Vcpu.get_mp_state,
    kvm.KVM_SET_MP_STATE: Vcpu.set_mp_state,
    kvm.KVM_ENABLE_CAP: Vcpu.enable_capability,
    kvm.KVM_SET_LAPIC: vcpu_lapic.set_lapic,
    kvm.KVM_GET_LAPIC: vcpu_lapic.get_lapic,
    kvm.KVM_SET_VCPU_EVENTS: Vcpu.keep,
    kvm.KVM_GET_VCPU_EVENTS: Vcpu.get_events,
    kvm.KVM_GET_NESTED_STATE: Vcpu.get_nested_state,
    **dict.fromkeys(
        (
            kvm.KVM_INTERRUPT,
            kvm.KVM_SET_SIGNAL_MASK,
            kvm.KVM_SET_NESTED_STATE,
            kvm.KVM_SET_VAPIC_ADDR,
            kvm.KVM_TPR_ACCESS_REPORTING,
            kvm.KVM_X86_SETUP_MCE,
            kvm.KVM_X86_SET_MCE,
            kvm.KVM_KVMCLOCK_CTRL,
        ),
        Vcpu.accept,
    ),
}
