# SPDX-License-Identifier: GPL-2.0-or-later
"""What one modelled host is: kernel release, its answers and behaviours, CPU, firmware, BIOS settings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ...spec import kvm
from ..firmware_config import FirmwareConfig

#: Profile name to the module that holds it.
NAMES = {
    "linux-6.1": "linux_6_1",
    "linux-6.12": "linux_6_12",
    "linux-6.18": "linux_6_18",
    "linux-7.2": "linux_7_2",
}


_CPUID_DEBUG_SWAP = 1 << 14
_SEV_FEATURES_DEBUG_SWAP = 1 << 5


class UnknownProfile(ValueError):
    """No profile, or no such setting of one."""


@dataclass(frozen=True)
class CpuidEntry:
    """One kvm_cpuid_entry2. `flags` bit 0: the index matters."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True)
class Profile:
    """A host. Everything that differs between kernels or machines is here, not in an ``if`` on a release.

    :param host_cpuid: (leaf, subleaf) to EAX, EBX, ECX, EDX as /dev/cpu/0/cpuid gives them; 0x8000001F is
        made from `encryption_ebx` and the ASID counts.
    :param encryption_ebx: EBX of CPUID 0x8000001F; the model sets it to what this machine's CPU answers.
    :param init2: KVM_SEV_INIT2 and the VM types that go with it exist (6.10).
    :param vm_types_need_asids: the SEV type is offered only if its range of ASIDs is not empty.
    :param ghcb_version_max: highest GHCB protocol version that KVM_SEV_INIT2 takes.
    :param debug_swap: kvm_amd.debug_swap, or its default where there is no such parameter.
    :param reinit_errno: a second KVM_SEV_ES_INIT on an active VM fails with this name.
    :param no_asid_range_errno: an init sub-command fails with this name if its range of ASIDs is empty.
    :param fpu_protected_at_creation: an ES vCPU's FPU state is out of reach from KVM_CREATE_VCPU on.
    :param msrs_hidden: MSRs that a protected vCPU reaches by itself are out of KVM's reach (vcpu_msrs.py).
    :param xss_hidden: IA32_XSS is one of them.
    :param vmsa_twice: a second LAUNCH_UPDATE_VMSA is passed on to the firmware.
    :param smi_on_es: KVM_SMI on an ES vCPU succeeds.
    :param execute: guest code executes in KVM_RUN; else a vCPU stands still until it is kicked.
    :param shutdown_exit: a SEV-ES guest's triple fault is KVM_EXIT_SHUTDOWN, not a failure of KVM_RUN
        (bc3d7c5570a0, 6.7).
    :param sev_term_event: a requested termination is KVM_EXIT_SYSTEM_EVENT, not a failure of KVM_RUN
        (c24a950ec7d6, 5.19).
    :param ghcb_2: KVM answers what version 2 of the GHCB protocol added (6.11).
    :param irqfd_resampled_when_unmasked: unmasking an IOAPIC pin whose level is up asks its irqfd's resampler
        instead of interrupting (fef8f2b90edb, 6.4).
    :param memlock: pinning guest memory counts against RLIMIT_MEMLOCK (off: see README.md).

    No kernel has what follows; each makes this one wrong in one way, so that a check can be seen to fail.

    :param wrong_init_after_vcpu: an init sub-command succeeds on a VM with vCPUs.
    :param wrong_init_twice: an init sub-command of an active VM succeeds and does nothing.
    :param wrong_init_any_type: init sub-commands do not look at the type of the VM.
    :param wrong_init2_unchecked: KVM_SEV_INIT2 does not look at its structure.
    :param wrong_launch_uninitialised: launch sub-commands do not ask for an init sub-command before them.
    :param wrong_null_probe: KVM_MEMORY_ENCRYPT_OP with a NULL pointer is EFAULT.
    :param wrong_vmsa_without_es: LAUNCH_UPDATE_VMSA of a guest without ES goes to the firmware.
    :param wrong_vmsa_twice: a second LAUNCH_UPDATE_VMSA takes the protection away.
    :param wrong_late_vmsa: LAUNCH_UPDATE_VMSA after LAUNCH_FINISH succeeds and does nothing.
    :param wrong_measure_length: the length that LAUNCH_MEASURE tells is 16 too large.
    :param wrong_firmware_order: until LAUNCH_FINISH, the firmware takes launch commands in any order.
    :param wrong_guest_debug: KVM_SET_GUEST_DEBUG of a protected vCPU succeeds.
    :param wrong_late_vcpu: KVM_RUN enters a vCPU that was never measured.
    :param wrong_vm_type_refused: KVM_CREATE_VM does not take a SEV-ES VM, though KVM_CAP_VM_TYPES has it.
    :param wrong_smm_on_es: KVM_CAP_X86_SMM of a SEV-ES VM is that of the system.
    :param wrong_sync_regs: KVM_CAP_SYNC_REGS of a type with protected state is that of the system.
    :param wrong_readonly_slot: such a type takes read-only memory slots, against its KVM_CAP_READONLY_MEM.
    :param wrong_registers_open: such a type does not guard the registers of a protected vCPU.
    :param wrong_fpu_shown: the FPU's state can be read from a protected vCPU.
    :param wrong_asid_leaked: a VM that is closed after /dev/sev keeps its ASID and firmware context.
    :param wrong_guest_leaked: so does every VM with a firmware context.
    :param wrong_sipi_start: the first SIPI starts a SEV-ES vCPU at its vector, as it does any other.
    :param wrong_ap_lost: the last vCPU of a SEV-ES VM never gets its first SIPI.
    :param wrong_hold_lost: a SEV-ES vCPU never gets a SIPI but its first: it stays in its AP reset hold.
    :param wrong_termination_ignored: a SEV-ES guest that asks for its termination goes on.
    :param wrong_vmm_mmio: KVM_RUN fails where a SEV-ES guest accesses by GHCB what only the VMM has.
    :param wrong_triple_fault_hangs: after its triple fault KVM_RUN executes nothing and lasts until a kick.
    :param wrong_registers_shown: KVM_GET_REGS and KVM_GET_SREGS of a protected vCPU, where they succeed, give
        the guest's registers.
    :param wrong_ghcb_registers: a VMGEXIT by the shared page leaves all general registers in KVM's copy, not
        only those that the guest exchanged.
    :param wrong_registers_written: KVM_SET_REGS of a protected vCPU, where it succeeds, changes in the guest
        what it changes in KVM's copy.
    :param wrong_memory_clear: private memory is not encrypted.
    """

    name: str
    release: str
    version: str
    microcode: str
    kvm_amd: Mapping[str, str]
    kvm: Mapping[str, str]
    ccp: Mapping[str, str]
    capabilities: Mapping[int, int]
    host_cpuid: Mapping[tuple[int, int], tuple[int, int, int, int]]
    encryption_eax: int
    supported_cpuid: tuple[CpuidEntry, ...]
    msr_index_list: tuple[int, ...]
    msr_features: Mapping[int, int]
    msr_ranges: tuple[tuple[int, int], ...]
    es_asids: int = 99
    sev_asids: int = 410
    sev: bool = True
    sev_es: bool = True
    platform_es: bool = True
    api_major: int = 1
    api_minor: int = 55
    build: int = 24
    encryption_ebx: int = 1 << 6
    tsc_khz: int = 2_450_000
    init2: bool = False
    vm_types_need_asids: bool = False
    ghcb_version_max: int = 2
    debug_swap: bool = False
    reinit_errno: str = "EBUSY"
    no_asid_range_errno: str = "EBUSY"
    fpu_protected_at_creation: bool = True
    msrs_hidden: bool = False
    xss_hidden: bool = True
    vmsa_twice: bool = True
    smi_on_es: bool = True
    memlock: bool = False
    execute: bool = True
    shutdown_exit: bool = False
    sev_term_event: bool = True
    ghcb_2: bool = False
    irqfd_resampled_when_unmasked: bool = False
    wrong_init_after_vcpu: bool = False
    wrong_init_twice: bool = False
    wrong_init_any_type: bool = False
    wrong_init2_unchecked: bool = False
    wrong_launch_uninitialised: bool = False
    wrong_null_probe: bool = False
    wrong_vmsa_without_es: bool = False
    wrong_vmsa_twice: bool = False
    wrong_late_vmsa: bool = False
    wrong_measure_length: bool = False
    wrong_firmware_order: bool = False
    wrong_guest_debug: bool = False
    wrong_late_vcpu: bool = False
    wrong_vm_type_refused: bool = False
    wrong_smm_on_es: bool = False
    wrong_sync_regs: bool = False
    wrong_readonly_slot: bool = False
    wrong_registers_open: bool = False
    wrong_fpu_shown: bool = False
    wrong_asid_leaked: bool = False
    wrong_guest_leaked: bool = False
    wrong_sipi_start: bool = False
    wrong_ap_lost: bool = False
    wrong_hold_lost: bool = False
    wrong_termination_ignored: bool = False
    wrong_vmm_mmio: bool = False
    wrong_triple_fault_hangs: bool = False
    wrong_registers_shown: bool = False
    wrong_ghcb_registers: bool = False
    wrong_registers_written: bool = False
    wrong_memory_clear: bool = False

    @property
    def sev_usable(self) -> bool:
        """kvm_amd.sev as it reads after set-up."""
        return self.sev and self.sev_asids + self.es_asids > 0

    @property
    def es_usable(self) -> bool:
        """kvm_amd.sev_es as it reads after set-up: needs the parameter and ASIDs."""
        return self.sev_usable and self.sev_es and self.es_asids > 0

    @property
    def vmsa_features(self) -> int:
        """SEV features that KVM_SEV_INIT2 may ask for: DebugSwap, if the CPU has it."""
        supported = self.debug_swap and self.es_usable and self.encryption_eax & _CPUID_DEBUG_SWAP
        return _SEV_FEATURES_DEBUG_SWAP if supported else 0

    @property
    def vm_types(self) -> int:
        """Bits of the types that KVM_CREATE_VM takes."""
        types = 1 << kvm.KVM_X86_DEFAULT_VM
        if self.init2 and self.sev_usable and (self.sev_asids or not self.vm_types_need_asids):
            types |= 1 << kvm.KVM_X86_SEV_VM
        if self.init2 and self.es_usable:
            types |= 1 << kvm.KVM_X86_SEV_ES_VM
        return types

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION for the system as a whole."""
        if number == kvm.KVM_CAP_VM_TYPES:
            return self.vm_types if self.init2 else 0
        return self.capabilities.get(number, 0)

    @cached_property
    def _known_msrs(self) -> frozenset[int]:
        ranges = (range(first, last + 1) for first, last in self.msr_ranges)
        return frozenset(
            (*self.msr_index_list, *self.msr_features, *(n for numbers in ranges for n in numbers))
        )

    def knows_msr(self, number: int) -> bool:
        """Whether KVM emulates this register for guests."""
        return number in self._known_msrs

    def firmware_config(self) -> FirmwareConfig:
        """The firmware of this host."""
        return FirmwareConfig(
            self.api_major,
            self.api_minor,
            self.build,
            es=self.platform_es,
            es_asids=self.es_asids,
            asids=self.es_asids + self.sev_asids,
            any_order=self.wrong_firmware_order,
            in_clear=self.wrong_memory_clear,
        )

    def host_leaf(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """CPUID of the host; zeros for a leaf that the profile does not know."""
        if leaf == 0x8000001F:
            return self.encryption_eax, self.encryption_ebx, self.es_asids + self.sev_asids, self.es_asids + 1
        return self.host_cpuid.get((leaf, subleaf), (0, 0, 0, 0))


def resolve(text: str, **overrides: Any) -> Profile:
    """The profile called `text`, which may carry settings: ``linux-6.1:sev_es=N,es_asids=2``.

    :raise UnknownProfile: names what there is.
    """
    name, _, settings = text.partition(":")
    if name not in NAMES:
        raise UnknownProfile(f"no model profile {name!r}; there is: {', '.join(sorted(NAMES))}")
    module = importlib.import_module(f".{NAMES[name]}", __name__)
    profile: Profile = module.PROFILE
    values = {**_settings(settings), **overrides}
    known = {item.name for item in fields(Profile)}
    for key in values:
        if key not in known:
            raise UnknownProfile(f"profile {name!r} has no setting {key!r}")
    return replace(profile, **values)


def _settings(text: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if value in ("Y", "N"):
            out[key] = value == "Y"
        elif equals and value.isdecimal():
            out[key] = int(value)
        else:
            raise UnknownProfile(f"wanted setting=number or setting=Y or =N, got {item!r}")
    return out
