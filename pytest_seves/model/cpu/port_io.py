# SPDX-License-Identifier: GPL-2.0-or-later
"""IN, OUT, INS and OUTS: #VC in a SEV-ES guest, carried out by KVM in any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import exits, vmcb
from .layout import DS, ES, HF_CS64, RAX, RCX, RDI, RSI

if TYPE_CHECKING:
    from .engine import PortAccess
    from .processor import Processor

_STRING_OPCODES = 0x6C
_REPEATS = frozenset({0xF2, 0xF3})


def access(cpu: Processor, access: PortAccess) -> exits.Handling | None:
    """An instruction accesses a port; RIP is on it."""
    if cpu.es:
        cpu.vc(vmcb.IOIO)
        return None
    code = cpu.code(access.length)
    if code[-1] & 0xFC == _STRING_OPCODES:
        return _string(cpu, access, repeat=bool(_REPEATS & set(code[:-1])))
    return _plain(cpu, access)


def _plain(cpu: Processor, access: PortAccess) -> exits.Handling:
    regs, mask = cpu.state.regs, (1 << 8 * access.size) - 1
    if access.value is None:
        data = yield from cpu.machine.accesses.port_in(access.port, access.size, 1)
        keep = 0 if access.size == 4 else regs[RAX] & ~mask
        regs[RAX] = keep | int.from_bytes(data, "little")
    else:
        data = (regs[RAX] & mask).to_bytes(access.size, "little")
        yield from cpu.machine.accesses.port_out(access.port, access.size, data)
    cpu.advance(access.length)


def _string(cpu: Processor, access: PortAccess, *, repeat: bool) -> exits.Handling:
    """Upwards, to ES:rDI or from DS:rSI."""
    state, regs, virtual = cpu.state, cpu.state.regs, cpu.machine.virtual
    mask = (1 << 64) - 1 if state.hflags & HF_CS64 else 0xFFFFFFFF
    left = regs[RCX] & mask if repeat else 1
    while left:
        count = min(left, exits.DATA_SIZE // access.size)
        if access.value is None:
            data = yield from cpu.machine.accesses.port_in(access.port, access.size, count)
            virtual.write(state.segs[ES].base + (regs[RDI] & mask) & mask, data)
            regs[RDI] = regs[RDI] + len(data) & mask
        else:
            data = virtual.read(state.segs[DS].base + (regs[RSI] & mask) & mask, count * access.size)
            yield from cpu.machine.accesses.port_out(access.port, access.size, data)
            regs[RSI] = regs[RSI] + len(data) & mask
        left -= count
        if repeat:
            regs[RCX] = regs[RCX] & ~mask | left
    cpu.advance(access.length)
