# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux 7.2.8 on the same machine: DebugSwap without a parameter, a second LAUNCH_UPDATE_VMSA refused.

Source: arch/x86/kvm/{x86.c,svm/} of that release; 9b9f7962e3e8 (Reject attempts to sync VMSA of an
already-launched/encrypted vCPU).
"""

from __future__ import annotations

from dataclasses import replace

from . import linux_6_18

PROFILE = replace(
    linux_6_18.PROFILE,
    name="linux-7.2",
    release="7.2.8",
    kvm_amd={name: value for name, value in linux_6_18.PROFILE.kvm_amd.items() if name != "debug_swap"},
    vm_types_need_asids=True,
    vmsa_twice=False,
)
