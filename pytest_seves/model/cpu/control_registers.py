# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves to control registers, and EFER: intercepted because the meaning of addresses hangs on them.

64-bit code cannot change what addresses mean: there a write of CR0 or CR4 executes; undone if it has tried.
CR8 is the engine's own, and a write of it is intercepted only while TPR holds an interrupt back.
For a SEV-ES guest all of them stand for the write traps by which KVM follows CR0, CR4, CR8 and EFER.
Sources: AMD64 Architecture Programmer's Manual volume 2 (24593), 3.1 and 15.35.6; Linux svm.c cr_trap().
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ...spec import kvm
from . import events
from .instructions import control_access
from .lapic import TPR
from .layout import EFER_LMA, EFER_LME, EFER_NXE, EFER_SVME, HF_CS32, HF_CS64, HF_SS32, RAX, RDX
from .virtual_memory import CR0_PG, CR4_PAE

if TYPE_CHECKING:
    from .processor import Processor

_CR0_PE, _CR0_TS, _CR0_ET = 1, 1 << 3, 1 << 4
_EFER_KNOWN = 1 | EFER_LME | EFER_NXE | 1 << 14
_LONGEST = 15


def access(cpu: Processor) -> None:
    """MOV CRn, LMSW or CLTS at RIP."""
    state, long_mode = cpu.state, bool(cpu.state.hflags & HF_CS64)
    found = control_access(cpu.code(_LONGEST), long_mode=long_mode)
    if found is None:
        return cpu.machine.events.deliver(events.INVALID_OPCODE)
    value = state.regs[found.register] & ((1 << 64) - 1 if long_mode else 0xFFFFFFFF)
    legal = True
    if found.kind == "clts":
        legal = _write_cr0(cpu, state.cr[0] & ~_CR0_TS)
    elif found.kind == "lmsw":
        legal = _write_cr0(cpu, state.cr[0] & ~0xE | value & 0xF)
    elif found.control == 8:
        cpu.write_lapic(TPR, (value & 0xF) << 4)
    elif found.control == 4:
        _write_cr4(cpu, value)
    else:
        legal = _write_cr0(cpu, value)
    if not legal:
        return cpu.machine.events.deliver(events.GENERAL_PROTECTION, 0)
    return cpu.advance(found.length)


def trap(cpu: Processor) -> None:
    """64-bit code has cleared CR0.PE, CR0.PG or CR4.PAE, which is a fault: undo it."""
    state, control = cpu.state, cpu.engine.control
    cpu.engine.write_register("CR4", control.kept_cr4)
    cpu.engine.write_register("CR0", control.kept_cr0)
    state.hflags |= HF_CS64 | HF_CS32
    cpu.engine.flush_tlb()
    state.eip = control.kept_eip
    return cpu.machine.events.deliver(events.GENERAL_PROTECTION, 0)


def _write_cr0(cpu: Processor, value: int) -> bool:
    turned_on = value & ~cpu.state.cr[0] & CR0_PG
    if value & CR0_PG and not value & _CR0_PE:
        return False
    if turned_on and cpu.state.efer & EFER_LME and not cpu.state.cr[4] & CR4_PAE:
        return False
    cpu.engine.write_register("CR0", value & 0xFFFFFFFF | _CR0_ET)
    cpu.engine.flush_tlb()
    cpu.select_paging()
    cpu.engine.watch_interrupt_return(not value & _CR0_PE and bool(cpu.state.hflags & HF_SS32))
    track(cpu, cr0=value | _CR0_ET)
    return True


def _write_cr4(cpu: Processor, value: int) -> None:
    cpu.engine.write_register("CR4", value)
    cpu.engine.flush_tlb()
    cpu.select_paging()
    track(cpu, cr4=value)


def track(cpu: Processor, **written: int) -> None:
    """KVM's own copies."""
    fields = {**written, "efer": cpu.state.efer & ~EFER_SVME}
    sregs = bytearray(cpu.vcpu.sregs)
    for name, value in fields.items():
        struct.pack_into("<Q", sregs, kvm.SREGS.field(name).offset, value)
    cpu.vcpu.sregs = bytes(sregs)


def efer(cpu: Processor, write: bool) -> None:
    """RDMSR or WRMSR of EFER."""
    state = cpu.state
    if not write:
        set_edx_eax(cpu, state.efer if cpu.es else state.efer & ~EFER_SVME)
        return cpu.advance(2)
    value = edx_eax(cpu)
    if (value ^ state.efer) & EFER_LME and state.cr[0] & CR0_PG:
        return cpu.machine.events.deliver(events.GENERAL_PROTECTION, 0)
    state.efer = value & _EFER_KNOWN | EFER_SVME | state.efer & EFER_LMA
    cpu.engine.flush_tlb()
    track(cpu)
    return cpu.advance(2)


def edx_eax(cpu: Processor) -> int:
    """The operand of WRMSR."""
    return int((cpu.state.regs[RDX] & 0xFFFFFFFF) << 32 | cpu.state.regs[RAX] & 0xFFFFFFFF)


def set_edx_eax(cpu: Processor, value: int) -> None:
    """The result of RDMSR."""
    cpu.state.regs[RAX], cpu.state.regs[RDX] = value & 0xFFFFFFFF, value >> 32
