# SPDX-License-Identifier: GPL-2.0-or-later
"""unicorn as one SVM CPU that all vCPUs of a VM take turns on.

A vCPU enters the guest once, by a real VMRUN from a VMCB (which gives it any hidden segment state), and stays
there: each intercept stops emulation before its instruction, and resuming goes on in guest mode. What a vCPU
is between two turns is a copy of unicorn's CPU context. One engine, not one for each vCPU, so that code which
one vCPU writes is translated anew for the others.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import vmcb
from .binding import EngineUnavailable as EngineUnavailable
from .binding import not_as_it_was, open_engine, register, unicorn_error
from .layout import (
    CS,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SVME,
    HF_CS64,
    HF_IOBPT,
    RAX,
    RCX,
    RDI,
    RSI,
    State,
    array_at,
    find_state,
    peek,
)
from .native import C_BIT, NO_EXIT, SYSCALL, Hooks
from .walks import PRIVATE_WALKS, change

# The engine's own physical memory. Guest memory is placed elsewhere by nested page tables.
PRIVATE_BASE = 0x70_0000_0000
PRIVATE_SIZE = 0x400_0000
_VMCB, _HOST_SAVE, _STUB, _IOPM, _MSRPM = (PRIVATE_BASE + at for at in (0, 0x1000, 0x2000, 0x4000, 0x8000))
TABLES = PRIVATE_BASE + 0x10000

_ENTRY = bytes.fromhex("0f01da0f01d8f4")  # vmload; vmrun; hlt
_NEVER = 0xFFFF_FFFF_FFFF_FFF0
_PAT_RESET = 0x0007040600070406
_DR_AFTER_PAT = 120  # bytes from CPUX86State.pat to .dr
_ERROR_AFTER_PAT = 104
_SOFTWARE_AFTER_PAT = 108  # exception_is_int
_VIRQ = 0x100  # CPU_INTERRUPT_VIRQ
_BEFORE_STATE = 0x10000
_AFTER_STATE = 0x4000
_INSTRUCTIONS = sum(1 << code - 0x60 for code in vmcb.INSTRUCTIONS)
_WRITE_TRAP = 0x100 + vmcb.CR0_WRITE_TRAP
_CR8 = 1 << 8
_IRET = 1 << vmcb.IRET - 0x60
_MAGIC_CR, _MAGIC_DR, _MAGIC_TPR = 0x5A3C_A5C3, 0x3C5A_C3A5, 0xA
_HOST_EFER = EFER_SVME | EFER_NXE | EFER_LMA | EFER_LME
_MSR_EFER, _MSR_HSAVE = 0xC0000080, 0xC0010117
#: Not intercepted: the guest reaches these registers by itself.
_PASSED_THROUGH = (0x174, 0x175, 0x176, 0x277, *range(0xC0000081, 0xC0000085), *range(0xC0000100, 0xC0000103))


class EngineFailure(Exception):
    """The engine gave up in the middle of guest code."""


class PortAccess(NamedTuple):
    """An IN or OUT that was executed by the engine and then taken back. `value` is None for IN."""

    port: int
    size: int
    value: int | None
    length: int


class Engine:
    """One VM's CPU.

    :ivar task_priority: TPR bits 7 to 4 of the current vCPU, as CR8 has them.

    :raise EngineUnavailable: unicorn is missing, of another release, or not as it was.
    """

    def __init__(self) -> None:
        self.uc: Any = open_engine()
        self._memory = mmap.mmap(-1, PRIVATE_SIZE)
        self._anchors: list[Any] = []
        self._mapped: list[tuple[int, int, int]] = []
        self.map(PRIVATE_BASE, self._memory)
        self._find_hidden_state()
        self._hooks = self._add_hooks()
        self.control = self._hooks.control
        self._prepare_host()
        self._host = self.uc.context_save()
        self._find_svm_state()

    # Running

    def run(self, budget: int) -> int | None:
        """Execute until an exit or the end of `budget` blocks.

        :return: the exit code, or None: the budget is used up and the vCPU stands before a block. Below 0 is
            what the engine leaves to us and hardware does by itself: -n for INT n, -SYSCALL behind a SYSCALL.
        """
        control, state = self.control, self.state
        control.budget, control.number = budget, NO_EXIT
        state.hflags |= HF_IOBPT
        self._software_interrupt.value = 0  # else unicorn takes its return address for the next exit's RIP
        self.uc._hook_exception = None
        status = self._start(self._handle, state.eip, _NEVER, 0, 0)
        if status:
            raise EngineFailure(f"at {state.eip:#x}: {self._error_type(status)}")
        if self.uc._hook_exception is not None:  # of a window's access
            raise self.uc._hook_exception
        number = control.number
        if number not in (NO_EXIT, _WRITE_TRAP):
            return number - 0x100 if number >= 0x100 and number != SYSCALL else -number
        control.budget += 1  # the block that did not fit has not executed
        mask = (1 << 64) - 1 if state.hflags & HF_CS64 else 0xFFFFFFFF
        state.eip = control.address - state.segs[CS].base & mask
        return None if number == NO_EXIT else vmcb.CR0_WRITE_TRAP

    def used(self, budget: int) -> int:
        """Blocks executed by the last run."""
        return budget - max(self.control.budget, 0)

    def taken_back(self) -> PortAccess | None:
        """The port access that this #DB followed, undone; None for any other #DB."""
        control, state = self.control, self.state
        if not control.kind:
            return None
        eip, rax, rsi, rdi, rcx, dr0, dr7 = control.kept
        value = None if control.kind == 1 else control.value
        control.kind = 0
        access = PortAccess(control.port, control.size, value, state.eip - eip)
        regs = state.regs
        state.eip, regs[RAX], regs[RSI], regs[RDI], regs[RCX] = eip, rax, rsi, rdi, rcx
        self.debug[0], self.debug[7] = dr0, dr7
        return access

    @property
    def exit_information(self) -> int:
        """EXITINFO1."""
        return int(self._error.value)

    @property
    def exit_address(self) -> int:
        """EXITINFO2: the guest physical address of a nested page fault, CR2 of a page fault."""
        return int(struct.unpack_from("<Q", self._memory, vmcb.EXIT_INFO_2)[0])

    def want_interrupt_window(self, wanted: bool) -> None:
        """Exit with VINTR as soon as the guest can take an interrupt."""
        value = self._request.value & ~_VIRQ
        self._request.value = value | (_VIRQ if wanted else 0)

    def watch_task_priority(self, wanted: bool) -> None:
        """Exit at a write of CR8, which otherwise changes :attr:`task_priority` alone."""
        if bool(self._cr_writes.value & _CR8) != wanted:
            self._cr_writes.value ^= _CR8

    def watch_interrupt_return(self, wanted: bool) -> None:
        """Exit at IRET: in real mode the engine pops by SP, though SS may have a 32-bit stack still."""
        self._instructions.value = _INSTRUCTIONS | (_IRET if wanted else 0)

    def flush_tlb(self) -> None:
        """Forget translations, after a change of page tables or of vCPU."""
        self._control(self._handle, self._tlb_flush)

    # Switching

    def save(self, context: Any) -> Any:
        """The vCPU's state, into `context` if there is one."""
        if context is None:
            return self.uc.context_save()
        self.uc.context_update(context)
        return context

    def restore(self, context: Any) -> None:
        """Make another vCPU the current one."""
        self.uc.context_restore(context)
        self._request.value = 0
        self.flush_tlb()

    def enter(self, nested_cr3: int, values: Mapping[str, Any], intercepts: Mapping[str, int]) -> None:
        """Make the current vCPU one that starts with `values`, names as in the save area, at the next run.

        :param intercepts: CR and DR intercept words, exceptions always being intercepted.
        """
        self.restore(self._host)
        memory = self._memory
        memory[0:0x1000] = bytes(0x1000)
        struct.pack_into("<II", memory, vmcb.INTERCEPT_CR, intercepts["cr"], intercepts["dr"])
        struct.pack_into("<IQ", memory, vmcb.INTERCEPT_EXCEPTIONS, 0xFFFFFFFF, _INSTRUCTIONS)
        struct.pack_into("<QQ", memory, vmcb.IOPM_BASE, _IOPM, _MSRPM)
        struct.pack_into("<II", memory, vmcb.GUEST_ASID, 1, 0)
        int_ctl = vmcb.V_IGNORE_TPR | vmcb.V_INTR_MASKING | values.get("v_irq", 0)
        struct.pack_into("<Q", memory, vmcb.INT_CTL, int_ctl)
        struct.pack_into("<Q", memory, vmcb.NESTED_CTL, 1)
        struct.pack_into("<Q", memory, vmcb.NESTED_CR3, nested_cr3)
        for name, offset in vmcb.SEGMENTS.items():
            segment = values[name]
            words = (segment.get(key, 0) for key in ("selector", "attrib", "limit", "base"))
            struct.pack_into("<HHIQ", memory, offset, *words)
        for name, offset in vmcb.SAVED.items():
            struct.pack_into("<Q", memory, offset, values[name])
        memory[vmcb.CPL] = values["cpl"]
        for index, name in enumerate(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")):
            self.state.regs[index] = values[name]
        for index in range(8, 16):
            self.state.regs[index] = values[f"r{index}"]
        self.state.regs[RAX] = _VMCB
        self.state.eip = _STUB

    # Memory

    def map(self, address: int, memory: mmap.mmap) -> None:
        """Make `memory` the engine's physical memory at `address`."""
        anchor = ctypes.c_char.from_buffer(memory)
        self._anchors.append(anchor)
        self._mapped.append((address, len(memory), ctypes.addressof(anchor)))
        self.uc.mem_map_ptr(address, len(memory), 7, ctypes.addressof(anchor))

    def map_mmio(
        self, address: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """4 GiB at `address` whose accesses call us: (offset, size) and (offset, size, value)."""
        self.uc.mmio_map(
            address,
            1 << 32,
            lambda _, offset, size, __: read(offset, size),
            None,
            lambda _, offset, size, value, __: write(offset, size, value),
            None,
        )

    def write_table(self, address: int, *entries: int) -> None:
        """Entries of a nested page table."""
        struct.pack_into(f"<{len(entries)}Q", self._memory, address - PRIVATE_BASE, *entries)

    def read_table(self, address: int) -> int:
        """One entry of a nested page table."""
        return int(struct.unpack_from("<Q", self._memory, address - PRIVATE_BASE)[0])

    def forget_code(self, address: int, size: int) -> None:
        """Memory was changed from outside: translate it anew.

        UC_CTL_TB_REMOVE_CACHE will not do: it takes a linear address of the guest.
        """
        for start, length, host in self._mapped:
            if start <= address < start + length:
                at = self._ram_address(self._handle, ctypes.c_void_p(host + address - start))
                self._invalidate(self._handle, ctypes.c_uint64(at), ctypes.c_uint64(at + size))

    # Registers that unicorn does not keep as they are read

    @property
    def flags(self) -> int:
        """RFLAGS, whose arithmetic bits unicorn keeps elsewhere until asked."""
        self._read(self._handle, self._eflags, self._flags_at)
        return self._flags.value

    @flags.setter
    def flags(self, value: int) -> None:
        self._flags.value = value
        self._write(self._handle, self._eflags, self._flags_at)

    def write_register(self, name: str, value: Any) -> None:
        """By unicorn's name for it."""
        self.uc.reg_write(register(name), value)

    def read_register(self, name: str) -> int:
        """By unicorn's name for it."""
        return int(self.uc.reg_read(register(name)))

    # Setting up

    def _find_hidden_state(self) -> None:
        magic = [int.from_bytes(os.urandom(7), "little") for _ in range(4)]
        for name, value in zip(("RAX", "RCX", "RDX", "RBX"), magic, strict=True):
            self.write_register(name, value)
        address = find_state(int(self.uc._uch.value), struct.pack("<4Q", *magic))
        if address is None:
            raise EngineUnavailable(not_as_it_was("the CPU's state was not found"))
        self.state = array_at(State, address)
        self._address = address
        self.write_register("MSR", (_MSR_EFER, _HOST_EFER))
        self.write_register("CR4", 0x220)
        if (self.state.efer, self.state.cr[4]) != (_HOST_EFER, 0x220):
            raise EngineUnavailable(not_as_it_was("EFER and CR4 are elsewhere"))
        pat = peek(address, 0x4000).find(struct.pack("<Q", _PAT_RESET))
        self.debug = array_at(ctypes.c_uint64 * 8, address + pat + _DR_AFTER_PAT)
        self._error = array_at(ctypes.c_uint32, address + pat + _ERROR_AFTER_PAT)
        self._software_interrupt = array_at(ctypes.c_uint32, address + pat + _SOFTWARE_AFTER_PAT)
        if pat < 0 or self.debug[6] != 0xFFFF0FF0 or self.debug[7] != 0x400:
            raise EngineUnavailable(not_as_it_was("the debug registers are elsewhere"))

    def _prepare_host(self) -> None:
        self._error_type: type[Exception] = unicorn_error()
        self.uc.ctl_exits_enabled(True)  # else `until` is translated through the guest's page tables
        self.write_register("MSR", (_MSR_HSAVE, _HOST_SAVE))
        self._memory[_STUB - PRIVATE_BASE : _STUB - PRIVATE_BASE + len(_ENTRY)] = _ENTRY
        self._memory[_IOPM - PRIVATE_BASE : _IOPM - PRIVATE_BASE + 0x3000] = b"\xff" * 0x3000
        self._memory[_MSRPM - PRIVATE_BASE : _MSRPM - PRIVATE_BASE + 0x2000] = b"\xff" * 0x2000
        for number in _PASSED_THROUGH:
            index = number if number < 0x2000 else 0x2000 + (number - 0xC0000000)
            at = _MSRPM - PRIVATE_BASE + index // 4
            self._memory[at] &= ~(3 << index % 4 * 2) & 0xFF

    def _add_hooks(self) -> Hooks:
        from unicorn import unicorn_const as c
        from unicorn import x86_const as x86
        from unicorn.unicorn_py3.unicorn import uclib

        hooks = Hooks(ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value or 0)
        functions = {
            "block": (c.UC_HOOK_BLOCK,),
            "interrupt": (c.UC_HOOK_INTR,),
            "invalid": (c.UC_HOOK_INSN_INVALID,),
            # unicorn lacks the I/O intercept: the access happens, a breakpoint stops after it, it is undone
            "in": (c.UC_HOOK_INSN, x86.UC_X86_INS_IN),
            "out": (c.UC_HOOK_INSN, x86.UC_X86_INS_OUT),
            "syscall": (c.UC_HOOK_INSN, x86.UC_X86_INS_SYSCALL),
        }
        for name, (kind, *instruction) in functions.items():
            handle = ctypes.c_size_t()
            function, control = ctypes.c_void_p(hooks.functions[name]), ctypes.c_void_p(hooks.control_address)
            where = (ctypes.c_uint64(1), ctypes.c_uint64(0), *map(ctypes.c_int, instruction))
            status = uclib.uc_hook_add(self.uc._uch, ctypes.byref(handle), kind, function, control, *where)
            if status:
                raise EngineUnavailable(not_as_it_was(f"a hook was refused ({status})"))
        self._start, self._handle = uclib.uc_emu_start, self.uc._uch
        self._control = uclib.uc_ctl
        self._tlb_flush = c.UC_CTL_IO_WRITE << 30 | c.UC_CTL_TLB_FLUSH
        try:
            self._invalidate = uclib.tb_invalidate_phys_range_x86_64
            self._ram_address = uclib.qemu_ram_addr_from_host_x86_64
            self._fill = ctypes.cast(uclib.x86_cpu_tlb_fill_x86_64, ctypes.c_void_p).value or 0
        except AttributeError as error:
            raise EngineUnavailable(not_as_it_was(str(error))) from None
        self._ram_address.restype = ctypes.c_uint64
        self._read, self._write = uclib.uc_reg_read, uclib.uc_reg_write
        self._eflags, self._flags = register("EFLAGS"), ctypes.c_uint64()
        self._flags_at = ctypes.byref(self._flags)
        hooks.control.state = self._address
        hooks.control.debug, hooks.control.error = ctypes.addressof(self.debug), ctypes.addressof(self._error)
        return hooks

    def _find_svm_state(self) -> None:
        """What a VMRUN sets: a bit of CPUState.interrupt_request, the intercepts, the virtual TPR."""
        start = self._address - _BEFORE_STATE
        before = peek(start, _BEFORE_STATE)
        self._request = array_at(ctypes.c_uint32, self._address - 4)  # until found
        segment = {"selector": 0, "attrib": 0x93, "limit": 0xFFFF, "base": 0}
        values: dict[str, Any] = dict.fromkeys(vmcb.SAVED, 0)
        values.update(dict.fromkeys(vmcb.SEGMENTS, segment), cpl=0, efer=0x1000, rflags=2)
        values.update(v_irq=vmcb.V_IRQ | _MAGIC_TPR)
        values.update(cs={**segment, "attrib": 0x9B}, cr0=0x10, g_pat=_PAT_RESET)
        values.update(dict.fromkeys(("rcx", "rdx", "rbx", "rbp", "rsi", "rdi"), 0))
        values.update({f"r{index}": 0 for index in range(8, 16)})
        self.enter(TABLES, values, {"cr": _MAGIC_CR, "dr": _MAGIC_DR})
        self.run(100)  # ends at once: nothing is mapped, so the first fetch is a nested page fault
        after = peek(start, _BEFORE_STATE)
        pairs = zip(struct.iter_unpack("<I", before), struct.iter_unpack("<I", after), strict=True)
        found = [4 * index for index, ((old,), (new,)) in enumerate(pairs) if old == 0 and new == _VIRQ]
        if len(found) != 1:
            raise EngineUnavailable(not_as_it_was("interrupt requests are elsewhere"))
        self._request = array_at(ctypes.c_uint32, start + found[0])
        self._request.value = 0
        self.control.request = start + found[0]
        self._find_intercepts(peek(self._address, _AFTER_STATE))
        self.enter(TABLES | PRIVATE_WALKS, values, {"cr": 0, "dr": 0})
        self.run(100)
        if self.exit_address != 1 << C_BIT:
            raise EngineUnavailable(not_as_it_was("code is not fetched as it should"))

    def _find_intercepts(self, state: bytes) -> None:
        words = struct.pack("<QIII", _INSTRUCTIONS, _MAGIC_CR, _MAGIC_DR, 0xFFFFFFFF)
        at = state.find(words)
        tail = at + len(words) + 4  # alignment; then nested_cr3, nested_pg_mode, v_tpr
        if at < 0 or struct.unpack_from("<Q", state, tail)[0] != TABLES or state[tail + 12] != _MAGIC_TPR:
            raise EngineUnavailable(not_as_it_was("SVM intercepts are elsewhere"))
        change(self._fill, tail)
        self._instructions = array_at(ctypes.c_uint64, self._address + at)
        self._cr_writes = array_at(ctypes.c_uint16, self._address + at + 10)
        self.control.cr_writes = self._address + at + 10
        self.task_priority = array_at(ctypes.c_uint8, self._address + tail + 12)


def check() -> None:
    """Make an engine and drop it.

    :raise EngineUnavailable: why guest code cannot execute here.
    """
    Engine()
