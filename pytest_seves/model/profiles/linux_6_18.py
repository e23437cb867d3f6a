# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux 6.18.12 on the same machine: before the fix for a second LAUNCH_UPDATE_VMSA, with that of KVM_SMI.

Source: arch/x86/kvm/{x86.c,svm/} of that release. IA32_XSS came out of the hidden registers with the
virtualisation of shadow stacks (6.18).
"""

from __future__ import annotations

from dataclasses import replace

from . import linux_6_12

PROFILE = replace(
    linux_6_12.PROFILE,
    name="linux-6.18",
    release="6.18.12",
    kvm_amd={**linux_6_12.PROFILE.kvm_amd, "ciphertext_hiding_asids": "0"},
    capabilities={**linux_6_12.PROFILE.capabilities, 213: 0x1FF},  # DISABLE_QUIRKS2
    xss_hidden=False,
    vmsa_twice=True,
    smi_on_es=False,
)
