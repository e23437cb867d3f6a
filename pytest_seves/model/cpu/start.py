# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU starts from: its save area, encrypted and measured, or the registers that KVM holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...spec import kvm, vmsa
from .. import encryption
from ..vmsa_sync import compose
from .engine import Engine
from .layout import EFER_SVME, Segment

if TYPE_CHECKING:
    from ..kvm_vcpu import Vcpu

_DR7_BITS = (1 << 7) | (1 << 23)  # reads and writes of DR7
_CR_BITS = (1 << 0 | 1 << 4) << 16  # writes of CR0 and CR4
_SIPI_SEGMENT = 0x9B
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


def save_area(vcpu: Vcpu, key: bytes | None) -> dict[str, Any]:
    """The registers by their names in the save area.

    :param key: decrypts the save area of a protected vCPU.
    """
    if vcpu.vmsa is not None:
        page = encryption.decrypt(key or b"", vcpu.vmsa_address, vcpu.vmsa)
        return vmsa.VMSA.decode(page[: vmsa.VMSA.size])
    values = vmsa.VMSA.decode(compose(vcpu, 0)[: vmsa.VMSA.size])
    special = kvm.SREGS.decode(vcpu.sregs)
    values.update(cr0=special["cr0"], cr4=special["cr4"], **vcpu.fpu.vmsa_fields())
    return values


def general(engine: Engine) -> dict[str, int]:
    """General registers of the engine's current vCPU, by their names in kvm_regs."""
    return dict(zip(_GENERAL, engine.state.regs, strict=True))


def read_back(engine: Engine, vcpu: Vcpu, flags: int) -> None:
    """KVM_GET_REGS and KVM_GET_SREGS of a vCPU that is not protected."""
    state = engine.state
    vcpu.regs = kvm.REGS.encode(**general(engine), rip=state.eip, rflags=flags)
    special = kvm.SREGS.decode(vcpu.sregs)
    for index, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
        special[name] = _segment(state.segs[index])
    special.update(ldt=_segment(state.ldt), tr=_segment(state.tr))
    for name, table in (("gdt", state.gdt), ("idt", state.idt)):
        special[name] = {"base": table.base, "limit": table.limit & 0xFFFF}
    special.update(cr2=state.cr[2], cr3=state.cr[3], cr4=state.cr[4], efer=state.efer & ~EFER_SVME)
    special["cr0"] = state.cr[0]
    vcpu.sregs = kvm.SREGS.encode(**special)


def overwrite(engine: Engine, registers: Mapping[str, int]) -> None:
    """Change these registers of the engine's current vCPU, by their names in kvm_regs."""
    for name, value in registers.items():
        if name == "rip":
            engine.state.eip = value
        elif name == "rflags":
            engine.write_register("EFLAGS", value)
        else:
            engine.state.regs[_GENERAL.index(name)] = value


def _segment(segment: Segment) -> dict[str, int]:
    flags = segment.flags >> 8
    present = flags >> 7 & 1
    return {
        "base": segment.base,
        "limit": segment.limit,
        "selector": segment.selector & 0xFFFF,
        "type": flags & 0xF,
        "s": flags >> 4 & 1,
        "dpl": flags >> 5 & 3,
        "present": present,
        "avl": flags >> 12 & 1,
        "l": flags >> 13 & 1,
        "db": flags >> 14 & 1,
        "g": flags >> 15 & 1,
        "unusable": 1 - present,
    }


def at_vector(values: dict[str, Any], vector: int) -> dict[str, Any]:
    """An AP's start by the vector of its SIPI: what KVM does to a vCPU that is not protected."""
    segment = {"selector": vector << 8, "base": vector << 12, "limit": 0xFFFF, "attrib": _SIPI_SEGMENT}
    return {**values, "cs": segment, "rip": 0}


def enter(engine: Engine, nested_cr3: int, values: dict[str, Any], *, hide_dr7: bool) -> None:
    """Load the engine's current vCPU."""
    values = {**values, "efer": values["efer"] | EFER_SVME}
    engine.enter(nested_cr3, values, {"cr": _CR_BITS, "dr": _DR7_BITS if hide_dr7 else 0})
    engine.write_register("FPCW", values["x87_fcw"])
    engine.write_register("MXCSR", values["mxcsr"])
    for index in range(16):
        lane = values["fpreg_xmm"][16 * index :][:16]
        engine.write_register(f"XMM{index}", int.from_bytes(lane, "little"))
    for index in range(4):
        engine.debug[index] = values[f"dr{index}"]
