# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers that a VMM set, against the reset state that sev-snp-measure computes on its own."""

from __future__ import annotations

from typing import Any

import pytest
from sevsnpmeasure import vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmsa import VMSA as TheirVmsa

from pytest_seves.evidence.registers import registers_before, reset_state, wrong_fields
from pytest_seves.spec import kvm, vmsa
from tests.evidence.recording import create_vcpu, create_vm, ioctl, run, timeline

SIGNATURE = vcpu_types.CPU_SIGS["EPYC-v3"]
RESET_ADDRESS = 0x0080B004
#: What KVM adds to the VMM's registers when it fills the VMSA (arch/x86/kvm/svm/sev.c): EFER.SVME, CR4.MCE;
#: and CR0 without CD and NW.
BY_KVM = {"efer": 0x1000, "cr4": 0x40, "cr0": 0x10}


@pytest.mark.parametrize("vcpu", [0, 1], ids=["bsp", "ap"])
def test_reset_state_is_the_one_of_sev_snp_measure(vcpu: int) -> None:
    """Our reset state, with what KVM adds, is the VMSA page of an independent implementation."""
    page = list(TheirVmsa(SevMode.SEV_ES, RESET_ADDRESS, SIGNATURE, 0).pages(2))[vcpu]
    theirs = dict(vmsa.VMSA.flat(bytes(page)[: vmsa.VMSA.size]))
    ours = reset_state(signature=SIGNATURE, reset_address=RESET_ADDRESS if vcpu else None, fpu=True)
    assert {name: theirs[name] for name in ours} == ours | BY_KVM


def _set(request: int, raw: bytes, vcpu: int = 0) -> dict[str, Any]:
    return ioctl(request, kind=f"vcpu:{vcpu}", ret=None, before=raw)


def test_the_last_write_counts() -> None:
    """Registers are those set last before the mark, of that vCPU alone."""
    seen = timeline(
        [
            create_vm(),
            create_vcpu(0),
            _set(kvm.KVM_SET_REGS, kvm.REGS.encode(rip=1)),
            _set(kvm.KVM_SET_REGS, kvm.REGS.encode(rip=2)),
            _set(kvm.KVM_SET_REGS, kvm.REGS.encode(rip=3), vcpu=1),
            run(0),
            _set(kvm.KVM_SET_REGS, kvm.REGS.encode(rip=4)),
        ]
    )
    assert registers_before(seen, 0, seen.runs[0])["rip"] == 2


def test_every_kind_of_write_is_decoded() -> None:
    """Segments, MSRs, debug registers, XCRs and the FPU are named by their VMSA fields."""
    cs = {"selector": 0xF000, "base": 0xFFFF0000, "limit": 0xFFFF, "type": 11, "present": 1, "s": 1}
    msr = kvm.MSR_ENTRY.encode(index=0x277, data=6) + kvm.MSR_ENTRY.encode(index=0x10, data=7)
    xsave = bytearray(4096)
    xsave[0:2], xsave[24:28] = b"\x7f\x03", b"\x80\x1f\0\0"
    seen = timeline(
        [
            create_vm(),
            _set(kvm.KVM_SET_SREGS, kvm.SREGS.encode(cs=cs, cr0=0x60000010)),
            _set(kvm.KVM_SET_MSRS, kvm.MSRS.encode(nmsrs=2) + msr),
            _set(kvm.KVM_SET_DEBUGREGS, kvm.DEBUGREGS.encode(db=(1, 2, 3, 4), dr7=0x400)),
            _set(kvm.KVM_SET_XCRS, kvm.XCRS.encode(nr_xcrs=1, xcr0={"xcr": 0, "value": 1})),
            _set(kvm.KVM_SET_XSAVE, bytes(xsave)),
            run(0),
        ]
    )
    got = registers_before(seen, 0, seen.runs[0])
    wanted = {"cs.attrib": 0x9B, "cs.base": 0xFFFF0000, "cr0": 0x60000010, "g_pat": 6, "dr1": 2, "dr7": 0x400}
    assert wanted.items() <= got.items()
    assert {"xcr0": 1, "x87_fcw": 0x37F, "mxcsr": 0x1F80}.items() <= got.items()


def test_a_wrong_field_is_named() -> None:
    """A mismatch names the field with what was wanted and got; a field never set is one."""
    assert wrong_fields({"rip": 0xFFF0, "rsp": 0}, {"rip": 0x10}) == {
        "rip": "wanted 0xfff0, got 0x10",
        "rsp": "wanted 0x0, got nothing: never set",
    }


def test_an_ap_starts_at_the_published_address() -> None:
    """The AP's CS:IP is the published address, split as OvmfPkg documents it."""
    state = reset_state(signature=0, reset_address=RESET_ADDRESS, fpu=False)
    assert (state["cs.base"], state["rip"]) == (0x00800000, 0xB004)
