# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux 6.12.107 on the same machine: VM types, KVM_SEV_INIT2 and hidden state, with the fixes of 2026.

Sources: arch/x86/kvm/{x86.c,svm/} of that release. A second LAUNCH_UPDATE_VMSA is refused by the backport of
9b9f7962e3e8 (Reject attempts to sync VMSA of an already-launched/encrypted vCPU). CPUID and MSR lists stay
those of 6.1 but for one bit: what a newer kernel adds there, no launch of an EPYC model needs. DebugSwap is
on by default again since KVM_SEV_INIT2 made it a choice for each guest (6.10).
"""

from __future__ import annotations

from dataclasses import replace

from . import linux_6_1

_CMP_LEGACY = 1 << 1  # CPUID 0x80000001 ECX

PROFILE = replace(
    linux_6_1.PROFILE,
    name="linux-6.12",
    release="6.12.107",
    version="#1 SMP PREEMPT_DYNAMIC",
    kvm_amd={**linux_6_1.PROFILE.kvm_amd, "debug_swap": "", "sev_snp": "N", "vnmi": "N"},
    capabilities={
        **linux_6_1.PROFILE.capabilities,
        213: 0xFF,  # DISABLE_QUIRKS2
        226: 1,  # PMU_EVENT_MASKED_EVENTS
        231: 1,  # USER_MEMORY2
        232: 1,  # MEMORY_FAULT_INFO
    },
    # KVM passes CMP_LEGACY on, and QEMU 10 asks for it as soon as there is a second vCPU.
    supported_cpuid=tuple(
        replace(leaf, ecx=leaf.ecx | _CMP_LEGACY) if leaf.function == 0x80000001 else leaf
        for leaf in linux_6_1.PROFILE.supported_cpuid
    ),
    init2=True,
    debug_swap=True,
    reinit_errno="EINVAL",
    no_asid_range_errno="ENOTTY",
    fpu_protected_at_creation=False,
    msrs_hidden=True,
    vmsa_twice=False,
    shutdown_exit=True,
    ghcb_2=True,
    irqfd_resampled_when_unmasked=True,
)
