# SPDX-License-Identifier: GPL-2.0-or-later
"""Named ways for a kernel to be wrong (`--sev-defect`): settings of the model's profile.

A real kernel cannot be made wrong from outside: these exist on the model alone. What the recorder does to
a VMM's calls is in :mod:`pytest_seves.guest.defects`.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Further settings: a kernel that leaks ASIDs is to have enough of them for a run.
_MORE: Mapping[str, Mapping[str, int]] = {"guest-leaked": {"es_asids": 400}}

#: Name to what it does, the requirements that it breaks, and the settings. Where a kernel has no
#: KVM_SEV_INIT2, a defect of it changes nothing.
KERNEL_DEFECTS: Mapping[str, tuple[str, frozenset[str], Mapping[str, int]]] = {
    name: (what, frozenset(breaks.split()), {setting: True, **_MORE.get(name, {})})
    for name, setting, breaks, what in (
        ("init-after-vcpu", "wrong_init_after_vcpu", "KVM-1", "initialises a VM that has vCPUs"),
        ("init-twice-taken", "wrong_init_twice", "KVM-14", "takes a second init command"),
        ("init-any-type", "wrong_init_any_type", "KVM-15 KVM-18", "takes either init command on any VM"),
        (
            "init2-unchecked",  # one structure that is not looked at: all three of its fields
            "wrong_init2_unchecked",
            "KVM-2 KVM-16 KVM-17",
            "takes whatever is in the structure of KVM_SEV_INIT2",
        ),
        (
            "launch-uninitialised",
            "wrong_launch_uninitialised",
            "KVM-19",
            "takes launch commands on a VM that is no SEV guest",
        ),
        ("null-probe-refused", "wrong_null_probe", "KVM-10", "does not know KVM_MEMORY_ENCRYPT_OP with NULL"),
        (
            "vmsa-of-plain-sev",
            "wrong_vmsa_without_es",
            "KVM-4",
            "sends LAUNCH_UPDATE_VMSA of a guest without ES to the firmware",
        ),
        (
            "vmsa-twice-unprotects",
            "wrong_vmsa_twice",
            "KVM-3",
            "takes the protection away at a second LAUNCH_UPDATE_VMSA",
        ),
        ("late-vmsa-ignored", "wrong_late_vmsa", "KVM-12", "ignores LAUNCH_UPDATE_VMSA after the launch"),
        ("measure-length-wrong", "wrong_measure_length", "KVM-6", "tells a wrong length of a measurement"),
        (
            "firmware-any-order",
            "wrong_firmware_order",
            "KVM-5",
            "has a firmware that takes launch commands in any order",
        ),
        (
            "guest-debug-taken",  # one call, which KVM's callers and a debugger through the VMM make alike
            "wrong_guest_debug",
            "KVM-7 REGISTERS-6",
            "takes KVM_SET_GUEST_DEBUG of a protected vCPU",
        ),
        ("late-vcpu-entered", "wrong_late_vcpu", "KVM-21 LIFECYCLE-7", "runs a vCPU that was never measured"),
        ("vm-type-refused", "wrong_vm_type_refused", "KVM-8", "offers a SEV-ES VM that cannot be created"),
        (
            "smm-offered",  # one capability, which KVM's callers and a VMM read alike
            "wrong_smm_on_es",
            "KVM-9 SMM-1 SMM-2 SMM-4",
            "offers system management mode to SEV-ES VMs",
        ),
        ("smi-on-es", "smi_on_es", "SMM-6", "takes KVM_SMI of a SEV-ES vCPU"),
        (
            "sync-regs-offered",
            "wrong_sync_regs",
            "KVM-20",
            "offers to pass a SEV-ES VM's registers in kvm_run",
        ),
        (
            "readonly-slot-taken",
            "wrong_readonly_slot",
            "KVM-11",
            "takes read-only memory against its own capability",
        ),
        (
            "registers-open",  # one guard, in front of registers and MSRs
            "wrong_registers_open",
            "REGISTERS-8 REGISTERS-10",
            "does not guard the registers of a protected vCPU",
        ),
        ("fpu-shown", "wrong_fpu_shown", "REGISTERS-9", "gives out the FPU state of a protected vCPU"),
        (
            "asid-kept",
            "wrong_asid_leaked",
            "KVM-13",
            "keeps the ASID of a VM that is closed after /dev/sev",
        ),
        (
            "guest-leaked",
            "wrong_guest_leaked",
            "KVM-13 SMM-3 LIFECYCLE-5",
            "never gives back the ASID and the firmware context of a guest",
        ),
        (
            "ap-starts-at-sipi",
            "wrong_sipi_start",
            "AP-BOOT-1 AP-BOOT-4 AP-BOOT-9",
            "starts an AP of a SEV-ES guest where its SIPI says",
        ),
        ("ap-lost", "wrong_ap_lost", "AP-BOOT-3", "never starts the last AP of a SEV-ES guest"),
        ("hold-not-woken", "wrong_hold_lost", "AP-BOOT-5", "wakes no AP from an AP reset hold"),
        (
            "termination-swallowed",
            "wrong_termination_ignored",
            "LIFECYCLE-3",
            "lets a SEV-ES guest go on that asks for its termination",
        ),
        (
            "vmm-mmio-refused",
            "wrong_vmm_mmio",
            "AP-BOOT-10",
            "lets no SEV-ES guest access what only the VMM has, other than by ports",
        ),
        (
            "triple-fault-hangs",
            "wrong_triple_fault_hangs",
            "LIFECYCLE-4",
            "lets KVM_RUN hang after a triple fault of a SEV-ES guest",
        ),
        ("registers-shown", "wrong_registers_shown", "REGISTERS-2", "gives out a SEV-ES guest's registers"),
        (
            "ghcb-leaks",
            "wrong_ghcb_registers",
            "REGISTERS-2",
            "shows registers of a SEV-ES guest that its VMGEXIT did not exchange",
        ),
        ("registers-written", "wrong_registers_written", "REGISTERS-5", "writes a SEV-ES guest's registers"),
        ("memory-in-clear", "wrong_memory_clear", "REGISTERS-7", "leaves private memory in clear"),
    )
}
