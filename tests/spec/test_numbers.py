# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and layouts against sources outside this project."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from sevsnpmeasure.vmsa import SevEsSaveArea

from pytest_seves.spec import kvm, vmsa

HEADER = Path("/usr/include/linux/kvm.h")
#: Names in which sev-snp-measure differs from Linux.
OTHER_NAMES = {f"vmpl{n}_ssp": f"pl{n}_ssp" for n in range(4)} | {"dbgctrl": "dbgctl"}


def test_vmsa_agrees_with_sev_snp_measure() -> None:
    """Every field of the VMSA lies where sev-snp-measure has it."""
    theirs = {
        OTHER_NAMES.get(name, name): (getattr(SevEsSaveArea, name).offset, ctypes.sizeof(kind))
        for name, kind in SevEsSaveArea._fields_
        if "reserved" not in name and "padding" not in name
    }
    ours = {field.name: (field.offset, field.size) for field in vmsa.VMSA.fields}
    assert theirs.items() <= ours.items()


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers on this machine")
def test_ioctl_numbers_agree_with_the_kernel_headers() -> None:
    """Type and number of every ioctl are those of the machine's linux/kvm.h, where it has the name."""
    pattern = re.compile(r"#define\s+(KVM_\w+)\s+_IO[WR]*\(KVMIO,\s*(0x[0-9a-f]+)", re.IGNORECASE)
    theirs: dict[str, set[int]] = {}
    for name, number in pattern.findall(HEADER.read_text()):
        theirs.setdefault(name, set()).add(int(number, 16))
    ours = {name: number & 0xFF for number, name in kvm.IOCTL_NAMES.items()}
    assert {name: n for name, n in ours.items() if name in theirs and n not in theirs[name]} == {}
    assert {number >> 8 & 0xFF for number in kvm.IOCTL_NAMES} == {0xAE}
