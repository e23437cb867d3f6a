# SPDX-License-Identifier: GPL-2.0-or-later
"""What each exit does, as the CPU and KVM do it for the guest's kind.

Source: AMD64 Architecture Programmer's Manual volume 2 (24593), 15.35.5 (which exits are automatic);
Linux arch/x86/kvm/svm/svm.c svm_exit_handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ...spec import ghcb as spec
from . import control_registers, events, exits, msrs, port_io, vmcb
from .layout import RAX, RBX, RCX, RDX
from .nested_paging import C_BIT_MASK

if TYPE_CHECKING:
    from .processor import Processor

_VMMCALL = b"\x0f\x01\xd9"
_VMGEXIT = b"\xf3" + _VMMCALL
_ENOSYS = 1000
_PAUSE_OPCODE = b"\x90"
_IRET = b"\xcf"
_LONGEST = 15
_INVD = b"\x0f\x08"
_FETCH = 1 << 4  # EXITINFO1 of a nested page fault


def handle(cpu: Processor, code: int) -> exits.Handling | None:
    """Handle an exit; what is left to do if the VMM has to be asked."""
    if vmcb.EXCEPTION <= code < vmcb.EXCEPTION + 32:
        return _exception(cpu, code - vmcb.EXCEPTION)
    handler = _HANDLERS.get(code)
    if handler is None:  # nested SVM, which no guest is offered
        cpu.machine.events.deliver(events.INVALID_OPCODE)
        return None
    return handler(cpu)


def _exception(cpu: Processor, vector: int) -> exits.Handling | None:
    if vector == 1:
        access = cpu.engine.taken_back()
        if access is not None:
            return port_io.access(cpu, access)
    if vector == events.INVALID_OPCODE and not cpu.state.cr[0] & 1 and _VMMCALL in cpu.code(4):
        return _vmmcall(cpu)  # the engine has it in protected mode only
    error = cpu.engine.exit_information & 0xFFFFFFFF if vector in events.WITH_ERROR else None
    if vector == events.PAGE_FAULT:
        cpu.state.cr[2] = cpu.engine.exit_address
    cpu.machine.events.deliver(vector, error)
    return None


def _window(_: Processor) -> None:
    """The interrupt is offered before the next entry."""


def _cpuid(cpu: Processor) -> None:
    if cpu.es:
        return cpu.vc(vmcb.CPUID)
    regs = cpu.state.regs
    regs[RAX], regs[RBX], regs[RCX], regs[RDX] = cpu.cpuid(regs[RAX], regs[RCX])
    return cpu.advance(2)


def _pause(cpu: Processor) -> None:
    code = cpu.code(4)
    cpu.advance(code.index(_PAUSE_OPCODE) + 1 if _PAUSE_OPCODE in code else 2)
    cpu.machine.yield_turn()


def _rdtsc(cpu: Processor) -> None:
    _give_tsc(cpu, 2)


def _rdtscp(cpu: Processor) -> None:
    cpu.state.regs[RCX] = cpu.vcpu.msrs.get(msrs.TSC_AUX, 0) & 0xFFFFFFFF
    _give_tsc(cpu, 3)


def _give_tsc(cpu: Processor, length: int) -> None:
    tsc = cpu.machine.tsc
    cpu.state.regs[RAX], cpu.state.regs[RDX] = tsc & 0xFFFFFFFF, tsc >> 32
    cpu.advance(length)


def _hlt(cpu: Processor) -> exits.Handling | None:
    cpu.advance(1)
    if not cpu.vcpu.vm.in_kernel_lapic:
        return _to_vmm(exits.HALT)
    cpu.halt()
    return None


def _to_vmm(reason: exits.Exit) -> exits.Handling:
    yield reason


def _iret(cpu: Processor) -> None:
    code = cpu.code(_LONGEST)
    wide = b"\x66" in code[: code.index(_IRET)]
    cpu.machine.events.return_real(4 if wide else 2)


def _skipped(code: int, length: int) -> Callable[[Processor], None]:
    """An instruction that KVM takes for a no-op."""

    def run(cpu: Processor) -> None:
        if cpu.es:
            cpu.vc(code)
        else:
            cpu.advance(length)

    return run


def _invalidate(cpu: Processor) -> None:
    """WBINVD, or INVD: the engine has one exit code for both."""
    code = vmcb.INVD if _INVD in cpu.code(4) else vmcb.WBINVD
    _skipped(code, 2)(cpu)


def _rdpmc(cpu: Processor) -> None:
    if cpu.es:
        cpu.vc(vmcb.RDPMC)
    else:
        cpu.machine.events.deliver(events.GENERAL_PROTECTION, 0)


def _vmmcall(cpu: Processor) -> exits.Handling | None:
    if cpu.es and cpu.code(4)[:4] == _VMGEXIT:
        cpu.advance(len(_VMGEXIT))
        return cpu.ghcb.vmgexit()
    if cpu.es:
        cpu.vc(vmcb.VMMCALL)
    else:
        cpu.state.regs[RAX] = -_ENOSYS & (1 << 64) - 1
        cpu.advance(3)
    return None


def _msr(cpu: Processor) -> None:
    number = cpu.state.regs[RCX] & 0xFFFFFFFF
    write = bool(cpu.engine.exit_information & 1)
    if number == msrs.EFER:
        return control_registers.efer(cpu, write)
    if cpu.es and (number != spec.SEV_STATUS_MSR or write):
        return cpu.vc(vmcb.MSR)
    try:
        if write:
            msrs.write(cpu, number, control_registers.edx_eax(cpu))
        else:
            control_registers.set_edx_eax(cpu, msrs.read(cpu, number))
    except msrs.UnknownMsr:
        return cpu.machine.events.deliver(events.GENERAL_PROTECTION, 0)
    return cpu.advance(2)


def memory_comes(cpu: Processor) -> bool:
    """Whether a nested page fault was for memory, which is there now."""
    address, information = cpu.engine.exit_address, cpu.engine.exit_information
    encrypted = cpu.memory.encrypted
    gpa = address & ~C_BIT_MASK if encrypted else address
    private = bool(address & C_BIT_MASK) or not cpu.machine.virtual.has_c_bit
    return cpu.memory.fault(gpa, write=bool(information & 2), private=private, fetch=fetches(cpu))


def fetches(cpu: Processor) -> bool:
    """Whether a nested page fault was for code, before a block rather than in one."""
    return bool(cpu.engine.exit_information & _FETCH)


def _not_memory(cpu: Processor) -> exits.Handling | None:
    if cpu.es:
        cpu.vc(vmcb.NPF)
        return None
    gpa = cpu.engine.exit_address & ~(C_BIT_MASK if cpu.memory.encrypted else 0)
    fetched_from, _ = cpu.machine.virtual.translate(cpu.linear_ip)
    if fetched_from >> 12 == gpa >> 12:
        cpu.machine.trace.note(f"vCPU {cpu.vcpu.identifier}: code at {gpa:#x}, where no memory is")
        return cpu.end(exits.EMULATION_FAILURE)
    cpu.machine.accesses.map_mmio(gpa)
    return None


_HANDLERS: Mapping[int, Callable[[Processor], exits.Handling | None]] = {
    vmcb.VINTR: _window,
    vmcb.CPUID: _cpuid,
    vmcb.IRET: _iret,
    vmcb.PAUSE: _pause,
    vmcb.RDTSC: _rdtsc,
    vmcb.RDTSCP: _rdtscp,
    vmcb.RDPMC: _rdpmc,
    vmcb.HLT: _hlt,
    vmcb.VMMCALL: _vmmcall,
    vmcb.SHUTDOWN: lambda cpu: cpu.triple_fault(),
    vmcb.MSR: _msr,
    vmcb.WRITE_CR0: control_registers.access,
    vmcb.WRITE_CR4: control_registers.access,
    vmcb.WRITE_CR8: control_registers.access,
    vmcb.CR0_WRITE_TRAP: control_registers.trap,
    vmcb.NPF: _not_memory,
    vmcb.WBINVD: _invalidate,
    vmcb.MONITOR: _skipped(vmcb.MONITOR, 3),
    vmcb.MWAIT: _skipped(vmcb.MWAIT, 3),
    vmcb.READ_DR7: lambda cpu: cpu.vc(vmcb.READ_DR7),
    vmcb.WRITE_DR7: lambda cpu: cpu.vc(vmcb.WRITE_DR7),
}
