# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM descriptor: Linux 6.1 virt/kvm/kvm_main.c kvm_vm_ioctl() and x86.c kvm_arch_vm_ioctl().

Interrupt controllers and timer are those of irqchip.py.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ..spec import kvm
from .eventfds import IoEventFds, IrqFds
from .irqchip import Irqchip, message_of
from .kvm_vcpu import Vcpu
from .sev_guest import SevGuest

if TYPE_CHECKING:
    from .cpu.machine import Machine
    from .supervisor import Call, GuestSupervisor

_CHIP_SIZE = 512
_CHIPS = 3  # PIC master, PIC slave, IOAPIC
_ROUTES = 4096  # KVM_MAX_IRQ_ROUTES
_CLOCK = struct.Struct("<QII Q Q 16x")
_CAP_USER_MEMORY2 = 231
_MEM_LOG_DIRTY_PAGES = 1 << 0
_MEM_READONLY = 1 << 1
_NOT_WITH_PROTECTED_STATE = (kvm.KVM_CAP_READONLY_MEM, kvm.KVM_CAP_SYNC_REGS)


class Vm:
    """One virtual machine; `vcpus` in the order of their creation, by identifier."""

    requests: ClassVar[Mapping[int, Callable[..., int | None]]]
    unknown_errno: ClassVar[int] = errno.ENOTTY

    def __init__(self, supervisor: GuestSupervisor, vm_type: int) -> None:
        self.supervisor = supervisor
        self.vm_type = vm_type
        self.vcpus: dict[int, Vcpu] = {}
        self.sev: SevGuest | None = None
        self.machine: Machine | None = None
        self.slots: dict[int, tuple[int, int, int, int]] = {}
        self.in_kernel_lapic = False
        self.irqchip = Irqchip()
        self.ioeventfds = IoEventFds(self)
        self.irqfds = IrqFds(self)
        self._irqchip = False
        self._pit = False

    def closed(self) -> None:
        """The last descriptor is gone: the guest is deactivated and decommissioned, its ASID freed."""
        if self.machine is not None:
            self.supervisor.machines.remove(self.machine)
            self.machine.close()
            self.machine = None
        self.ioeventfds.close()
        self.irqfds.close()
        if self.sev is not None:
            self.sev.release()
            self.sev = None
        for thread in [t for t, vcpu in self.supervisor.vcpu_of_thread.items() if vcpu.vm is self]:
            del self.supervisor.vcpu_of_thread[thread]

    def execute(self, vcpu: Vcpu) -> None:
        """A vCPU is in KVM_RUN: let the guest go on. The CPUs are made when first needed."""
        if self.machine is None:
            from .cpu.machine import Machine

            self.machine = Machine(self, self.sev.memory_key() if self.sev is not None else None)
            self.supervisor.machines.append(self.machine)
        self.machine.add(vcpu)

    def restart(self, vcpu: Vcpu) -> None:
        """Registers of a vCPU were set."""
        if self.machine is not None:
            self.machine.restart(vcpu)

    def nmi(self, vcpu: Vcpu) -> int:
        """KVM_NMI on a vCPU."""
        if self.machine is not None:
            self.machine.nmi(vcpu)
        return 0

    @property
    def in_kernel_irqchip(self) -> bool:
        """PIC and IOAPIC are KVM's."""
        return self._irqchip

    @property
    def in_kernel_pit(self) -> bool:
        """The timer is KVM's."""
        return self._pit

    @property
    def es(self) -> bool:
        """sev_es_guest(kvm): the ES init command has succeeded."""
        return self.sev is not None and self.sev.es

    @property
    def has_protected_state(self) -> bool:
        """Of this VM type, KVM refuses what it cannot do on protected vCPUs."""
        return self.vm_type == kvm.KVM_X86_SEV_ES_VM

    @property
    def need_init(self) -> bool:
        """A SEV type before its KVM_SEV_INIT2."""
        return self.vm_type != kvm.KVM_X86_DEFAULT_VM and self.sev is None

    # Creation

    def create_vcpu(self, call: Call) -> int | None:
        """KVM_CREATE_VCPU."""
        capabilities = self.supervisor.profile.capabilities
        if call.argument >= capabilities[kvm.KVM_CAP_MAX_VCPU_ID]:
            return -errno.EINVAL
        if len(self.vcpus) >= capabilities[kvm.KVM_CAP_MAX_VCPUS]:
            return -errno.EINVAL
        if call.argument in self.vcpus:
            return -errno.EEXIST
        vcpu = Vcpu(self, call.argument)
        run = self.supervisor.grant_mapped(call.identifier, vcpu, f"seves-vcpu{call.argument}", 3 * 4096)
        if run is not None:
            vcpu.run = run
            self.vcpus[call.argument] = vcpu
            self.supervisor.vcpu_of_thread[call.thread] = vcpu
        return None

    def create_irqchip(self, _: Call) -> int:
        """KVM_CREATE_IRQCHIP."""
        if self.in_kernel_lapic:
            return -errno.EEXIST
        if self.vcpus:
            return -errno.EINVAL
        self.in_kernel_lapic = self._irqchip = True
        self.irqchip.use_default_routes()
        return 0

    def create_pit(self, call: Call) -> int:
        """KVM_CREATE_PIT2: needs the in-kernel PIC and IOAPIC."""
        self.supervisor.memory.read(call.argument, call.size)
        if self._pit:
            return -errno.EEXIST
        if not self._irqchip:
            return -errno.ENOENT
        self._pit = True
        return 0

    def enable_capability(self, call: Call) -> int:
        """KVM_ENABLE_CAP."""
        fields = kvm.ENABLE_CAP.decode(self.supervisor.memory.read(call.argument, kvm.ENABLE_CAP.size))
        if fields["flags"]:
            return -errno.EINVAL
        if fields["cap"] == kvm.KVM_CAP_SPLIT_IRQCHIP:
            if self.in_kernel_lapic:
                return -errno.EEXIST
            if self.vcpus:
                return -errno.EINVAL
            self.in_kernel_lapic = True
            return 0
        return 0 if self.supervisor.profile.capabilities.get(fields["cap"]) else -errno.EINVAL

    def check_extension(self, call: Call) -> int:
        """KVM_CHECK_EXTENSION: an ES guest has no SMM, as SMBASE cannot be emulated (5719455fbd95, 5.11)."""
        profile = self.supervisor.profile
        if call.argument == kvm.KVM_CAP_X86_SMM and self.es and not profile.wrong_smm_on_es:
            return 0
        shown = call.argument == kvm.KVM_CAP_SYNC_REGS and profile.wrong_sync_regs
        if call.argument in _NOT_WITH_PROTECTED_STATE and self.has_protected_state and not shown:
            return 0
        return profile.capability(call.argument)

    # Memory

    def set_memory_region(self, call: Call) -> int:
        """KVM_SET_USER_MEMORY_REGION; size 0 deletes the slot."""
        raw = self.supervisor.memory.read(call.argument, kvm.USERSPACE_MEMORY_REGION.size)
        slot, flags, gpa, size, address = struct.unpack("<IIQQQ", raw)
        taken = not self.has_protected_state or self.supervisor.profile.wrong_readonly_slot
        readonly = _MEM_READONLY if taken else 0  # 66155de93bcf, 6.11
        if flags & ~(_MEM_LOG_DIRTY_PAGES | readonly):
            return -errno.EINVAL
        if size % 4096 or gpa % 4096 or address % 4096:
            return -errno.EINVAL
        if slot & 0xFFFF >= self.supervisor.profile.capabilities[kvm.KVM_CAP_NR_MEMSLOTS]:
            return -errno.EINVAL
        if size == 0:
            return 0 if self.slots.pop(slot, None) else -errno.EINVAL
        space = slot >> 16
        for other, (other_gpa, other_size, _, _) in self.slots.items():
            apart = gpa + size <= other_gpa or other_gpa + other_size <= gpa
            if other != slot and other >> 16 == space and not apart:
                return -errno.EEXIST
        self.slots[slot] = (gpa, size, address, flags)
        return 0

    def set_memory_region2(self, call: Call) -> int:
        """KVM_SET_USER_MEMORY_REGION2 (6.8): the same and guest_memfd, which no modelled VM type has."""
        if not self.supervisor.profile.capability(_CAP_USER_MEMORY2):
            return -self.unknown_errno
        return self.set_memory_region(call)

    def dirty_log(self, call: Call) -> int:
        """KVM_GET_DIRTY_LOG: every page of a guest that has executed, since its writes are not tracked."""
        slot, _, address = struct.unpack("<IIQ", self.supervisor.memory.read(call.argument, 16))
        if slot not in self.slots:
            return -errno.ENOENT
        pages = self.slots[slot][1] // 4096
        words = (pages + 63) // 64
        bitmap = (
            bytes(words * 8) if self.machine is None else ((1 << pages) - 1).to_bytes(words * 8, "little")
        )
        self.supervisor.memory.write(address, bitmap)
        return 0

    # Interrupt controllers, timer, clock

    def get_irqchip(self, call: Call) -> int:
        """KVM_GET_IRQCHIP."""
        (chip,) = struct.unpack("<I", self.supervisor.memory.read(call.argument, 4))
        if not self._irqchip:
            return -errno.ENXIO
        if chip >= _CHIPS:
            return -errno.EINVAL
        self.irqfds.sweep()
        self.supervisor.memory.write(call.argument + 8, self.irqchip.chip_state(chip))
        return 0

    def set_irqchip(self, call: Call) -> int:
        """KVM_SET_IRQCHIP."""
        raw = self.supervisor.memory.read(call.argument, 8 + _CHIP_SIZE)
        (chip,) = struct.unpack_from("<I", raw)
        if not self._irqchip:
            return -errno.ENXIO
        if chip >= _CHIPS:
            return -errno.EINVAL
        self.irqfds.sweep()
        self.irqchip.restore_chip(chip, raw[8:])
        return 0

    def irq_line(self, call: Call) -> int:
        """KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS; with a split irqchip the routes lead to the LAPICs."""
        gsi, level = struct.unpack("<II", self.supervisor.memory.read(call.argument, 8))
        if not self.in_kernel_lapic:
            return -errno.ENXIO
        self.irqfds.sweep()
        taken = self.irqchip.set_line(gsi, bool(level & 1))
        if call.request == kvm.KVM_IRQ_LINE_STATUS:
            self.supervisor.memory.write(call.argument, struct.pack("<i", taken))
        return 0

    def set_routing(self, call: Call) -> int:
        """KVM_SET_GSI_ROUTING."""
        count, flags = struct.unpack("<II", self.supervisor.memory.read(call.argument, 8))
        if not self.in_kernel_lapic or flags or count > _ROUTES:
            return -errno.EINVAL
        self.irqfds.sweep()
        return self.irqchip.set_routes(self.supervisor.memory.read(call.argument + 8, 48 * count))

    def signal_msi(self, call: Call) -> int:
        """KVM_SIGNAL_MSI: how many local APICs took it."""
        low, high, data = struct.unpack_from("<III", self.supervisor.memory.read(call.argument, call.size))
        if not self.in_kernel_lapic:
            return -errno.EINVAL
        return self.irqchip.deliver(message_of(high << 32 | low, data))

    def set_boot_cpu(self, _: Call) -> int:
        """KVM_SET_BOOT_CPU_ID."""
        return -errno.EBUSY if self.vcpus else 0

    def get_clock(self, call: Call) -> int:
        """KVM_GET_CLOCK."""
        self.supervisor.memory.write(call.argument, _CLOCK.pack(time.monotonic_ns(), 0, 0, 0, 0))
        return 0

    def accept(self, call: Call) -> int:
        """Requests that only need their argument to be readable."""
        if call.size:
            self.supervisor.memory.read(call.argument, call.size)
        return 0

    def get_pit(self, call: Call) -> int:
        """KVM_GET_PIT2."""
        if not self._pit:
            return -errno.ENXIO
        self.supervisor.memory.write(call.argument, self.irqchip.pit.state())
        return 0

    def set_pit(self, call: Call) -> int:
        """KVM_SET_PIT2."""
        raw = self.supervisor.memory.read(call.argument, call.size)
        if not self._pit:
            return -errno.ENXIO
        self.irqchip.pit.restore(raw, self.machine.now_ns if self.machine is not None else 0)
        return 0

    # SEV

    def memory_encrypt_op(self, call: Call) -> int:
        """KVM_MEMORY_ENCRYPT_OP; a NULL argument asks whether SEV is enabled."""
        if not self.supervisor.profile.sev_usable:
            return -errno.ENOTTY
        if call.argument == 0:
            return -errno.EFAULT if self.supervisor.profile.wrong_null_probe else 0
        sev = self.sev or SevGuest(self)
        result = sev.command(call.argument)
        if sev.active:
            self.sev = sev
        return result

    def register_region(self, call: Call) -> int:
        """KVM_MEMORY_ENCRYPT_REG_REGION."""
        return self.sev.register_region(call.argument) if self.sev else -errno.ENOTTY

    def unregister_region(self, call: Call) -> int:
        """KVM_MEMORY_ENCRYPT_UNREG_REGION."""
        return self.sev.unregister_region(call.argument) if self.sev else -errno.ENOTTY


Vm.requests = {
    kvm.KVM_CREATE_VCPU: Vm.create_vcpu,
    kvm.KVM_CREATE_IRQCHIP: Vm.create_irqchip,
    kvm.KVM_CREATE_PIT2: Vm.create_pit,
    kvm.KVM_ENABLE_CAP: Vm.enable_capability,
    kvm.KVM_CHECK_EXTENSION: Vm.check_extension,
    kvm.KVM_SET_USER_MEMORY_REGION: Vm.set_memory_region,
    kvm.KVM_SET_USER_MEMORY_REGION2: Vm.set_memory_region2,
    kvm.KVM_GET_DIRTY_LOG: Vm.dirty_log,
    kvm.KVM_GET_IRQCHIP: Vm.get_irqchip,
    kvm.KVM_SET_IRQCHIP: Vm.set_irqchip,
    kvm.KVM_IRQ_LINE: Vm.irq_line,
    kvm.KVM_IRQ_LINE_STATUS: Vm.irq_line,
    kvm.KVM_SIGNAL_MSI: Vm.signal_msi,
    kvm.KVM_SET_GSI_ROUTING: Vm.set_routing,
    kvm.KVM_IOEVENTFD: lambda vm, call: vm.ioeventfds.request(call),
    kvm.KVM_IRQFD: lambda vm, call: vm.irqfds.request(call),
    kvm.KVM_SET_BOOT_CPU_ID: Vm.set_boot_cpu,
    kvm.KVM_GET_CLOCK: Vm.get_clock,
    kvm.KVM_GET_PIT2: Vm.get_pit,
    kvm.KVM_SET_PIT2: Vm.set_pit,
    kvm.KVM_MEMORY_ENCRYPT_OP: Vm.memory_encrypt_op,
    kvm.KVM_MEMORY_ENCRYPT_REG_REGION: Vm.register_region,
    kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION: Vm.unregister_region,
    **dict.fromkeys(
        (
            kvm.KVM_SET_TSS_ADDR,
            kvm.KVM_SET_IDENTITY_MAP_ADDR,
            kvm.KVM_REGISTER_COALESCED_MMIO,
            kvm.KVM_UNREGISTER_COALESCED_MMIO,
            kvm.KVM_SET_CLOCK,
            kvm.KVM_SET_PMU_EVENT_FILTER,
            kvm.KVM_X86_SET_MSR_FILTER,
            kvm.KVM_CLEAR_DIRTY_LOG,
            0xAE71,  # KVM_REINJECT_CONTROL
        ),
        Vm.accept,
    ),
}
