# SPDX-License-Identifier: GPL-2.0-or-later
"""The register state that a VMM gave to KVM, and the state that a vCPU has at reset.

KVM builds the VMSA of a vCPU from the registers that the VMM set last before LAUNCH_UPDATE_VMSA; the page
itself never leaves the kernel. So the measured state is judged by these calls. Values are named by their
VMSA fields (:mod:`pytest_seves.spec.vmsa`), as the VMM set them: what KVM adds (EFER.SVME, CR4.MCE, CR0
without CD and NW) is not the VMM's doing and is not part of it.

Source of the reset values: AMD64 Architecture Programmer's Manual volume 2 (24593), section 14.1.3,
"Processor Initialization State"; attributes of the hidden segment registers as KVM's uapi spells them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_seves.spec import kvm, vmsa

from .events import Event
from .timeline import Timeline, before

#: kvm_sregs names of segments to VMSA names.
_SEGMENTS = {
    "cs": "cs",
    "ds": "ds",
    "es": "es",
    "fs": "fs",
    "gs": "gs",
    "ss": "ss",
    "tr": "tr",
    "ldt": "ldtr",
}
_XSAVE_FCW, _XSAVE_MXCSR = 0, 24  # offsets in the legacy region of an XSAVE image (APM vol. 2, 11.4.4)

Registers = dict[str, Any]


def registers_before(timeline: Timeline, vcpu: int, mark: Event) -> Registers:
    """Registers of a vCPU as the VMM had set them when `mark` was issued, by VMSA field name.

    Fields that the VMM never set are absent.
    """
    writes = [event for event in before(timeline.register_writes(vcpu), mark) if not event.failed]
    state: Registers = {}
    for event in writes:
        state.update(registers_set(event))
    return state


def registers_set(event: Event) -> Registers:
    """What one call sets, by VMSA field name; nothing for a call that sets no register."""
    if event.input is None or event.request not in _decoders:
        return {}
    return _decoders[event.request](event.input)


def _regs(raw: bytes) -> Registers:
    return kvm.REGS.decode(raw)


def _sregs(raw: bytes) -> Registers:
    layout = kvm.SREGS if len(raw) == kvm.SREGS.size else kvm.SREGS2
    decoded = layout.decode(raw)
    state: Registers = {name: decoded[name] for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
    for name, field in _SEGMENTS.items():
        segment = decoded[name]
        for part in ("selector", "limit", "base"):
            state[f"{field}.{part}"] = segment[part]
        state[f"{field}.attrib"] = _attributes(segment)
    for name, field in (("gdt", "gdtr"), ("idt", "idtr")):
        state[f"{field}.base"] = decoded[name]["base"]
        state[f"{field}.limit"] = decoded[name]["limit"]
    return state


def _attributes(segment: dict[str, int]) -> int:
    """Descriptor bytes 5 and 6 packed into 12 bits, as VMCB and VMSA hold them (APM vol. 2, 15.5)."""
    present = segment["present"] and not segment["unusable"]
    return (
        segment["type"]
        | segment["s"] << 4
        | segment["dpl"] << 5
        | present << 7
        | segment["avl"] << 8
        | segment["l"] << 9
        | segment["db"] << 10
        | segment["g"] << 11
    )


def _msrs(raw: bytes) -> Registers:
    state: Registers = {}
    for entry in kvm.msr_entries(raw):
        field = vmsa.MSR_FIELDS.get(entry["index"])
        if field:
            state[field] = entry["data"]
    return state


def _debugregs(raw: bytes) -> Registers:
    decoded = kvm.DEBUGREGS.decode(raw)
    state: Registers = {f"dr{index}": value for index, value in enumerate(decoded["db"])}
    return {**state, "dr6": decoded["dr6"], "dr7": decoded["dr7"]}


def _xcrs(raw: bytes) -> Registers:
    decoded = kvm.XCRS.decode(raw)
    entries = [decoded[f"xcr{index}"] for index in range(min(decoded["nr_xcrs"], 16))]
    values = {f"xcr{entry['xcr']}": entry["value"] for entry in entries}
    return {name: value for name, value in values.items() if name == "xcr0"}


def _xsave(raw: bytes) -> Registers:
    return {
        "x87_fcw": int.from_bytes(raw[_XSAVE_FCW : _XSAVE_FCW + 2], "little"),
        "mxcsr": int.from_bytes(raw[_XSAVE_MXCSR : _XSAVE_MXCSR + 4], "little"),
    }


def _fpu(raw: bytes) -> Registers:
    # struct kvm_fpu: fpr[8][16], then fcw at 128; mxcsr at 408.
    return {
        "x87_fcw": int.from_bytes(raw[128:130], "little"),
        "mxcsr": int.from_bytes(raw[408:412], "little"),
    }


_decoders = {
    kvm.KVM_SET_REGS: _regs,
    kvm.KVM_SET_SREGS: _sregs,
    kvm.KVM_SET_SREGS2: _sregs,
    kvm.KVM_SET_MSRS: _msrs,
    kvm.KVM_SET_DEBUGREGS: _debugregs,
    kvm.KVM_SET_XCRS: _xcrs,
    kvm.KVM_SET_XSAVE: _xsave,
    kvm.KVM_SET_FPU: _fpu,
}


def reset_state(*, signature: int, reset_address: int | None, fpu: bool) -> Registers:
    """Registers of a vCPU at reset, by VMSA field name.

    :param signature: CPUID 1 EAX of the guest's CPU model; RDX holds it at reset.
    :param reset_address: 32-bit address that the firmware publishes for SEV-ES APs, None for the BSP:
        the low 16 bits are IP, the rest the base of CS (OvmfPkg, SEV-ES reset block).
    :param fpu: include MXCSR and the x87 control word, which KVM measures under KVM_SEV_INIT2 only.
    """
    state: Registers = {}
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"):
        state.update(
            {f"{name}.selector": 0, f"{name}.attrib": 0x93, f"{name}.limit": 0xFFFF, f"{name}.base": 0}
        )
    state.update({"cs.selector": 0xF000, "cs.attrib": 0x9B, "ldtr.attrib": 0x82, "tr.attrib": 0x8B})
    if reset_address is None:
        state.update({"cs.base": 0xFFFF0000, "rip": 0xFFF0})
    else:
        state.update({"cs.base": reset_address & 0xFFFF0000, "rip": reset_address & 0xFFFF})
    for name in ("gdtr", "idtr"):
        state.update({f"{name}.limit": 0xFFFF, f"{name}.base": 0})
    state.update(
        dict.fromkeys(
            [
                "rax",
                "rbx",
                "rcx",
                "rsi",
                "rdi",
                "rsp",
                "rbp",
                "r8",
                "r9",
                "r10",
                "r11",
                "r12",
                "r13",
                "r14",
                "r15",
            ],
            0,
        )
    )
    state.update(
        {"rdx": signature, "rflags": 0x2, "cr0": 0x6000_0010, "cr2": 0, "cr3": 0, "cr4": 0, "efer": 0}
    )
    state.update({"dr0": 0, "dr1": 0, "dr2": 0, "dr3": 0, "dr6": 0xFFFF_0FF0, "dr7": 0x400, "xcr0": 1})
    state.update({"g_pat": 0x0007_0406_0007_0406, "sysenter_cs": 0, "sysenter_esp": 0, "sysenter_eip": 0})
    state.update(dict.fromkeys(("star", "lstar", "cstar", "sfmask", "kernel_gs_base"), 0))
    if fpu:
        state.update({"mxcsr": 0x1F80, "x87_fcw": 0x37F})
    return state


def wrong_fields(wanted: Registers, got: Registers, optional: Iterable[str] = ()) -> dict[str, str]:
    """Fields in which `got` is not as wanted: name to ``wanted X, got Y`` (both hex).

    A wanted field that the VMM never set is wrong too, except those in `optional`.
    """
    wrong = {}
    for name, value in wanted.items():
        if name not in got:
            if name not in optional:
                wrong[name] = f"wanted {value:#x}, got nothing: never set"
        elif got[name] != value:
            wrong[name] = f"wanted {value:#x}, got {got[name]:#x}"
    return wrong
