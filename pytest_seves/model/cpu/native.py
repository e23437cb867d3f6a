# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks as machine code: what unicorn calls for each block and each exit, without entering Python.

A stop from another thread can hit unicorn between the load and the store of one instruction, which then
executes twice. A stop from a block's hook takes effect before the block's first instruction, always. So the
block hook counts a budget down and stops there; the count also makes preemption repeatable.
"""

from __future__ import annotations

import ctypes
import mmap

# void block(uc, uint64_t address, uint32_t size, Control *control)
#   dec qword [rcx]; js stop; ret; stop: mov [rcx+16], rsi; jmp [rcx+8]
_BLOCK = bytes.fromhex("48ff097801c348897110ff6108")
# void interrupt(uc, uint32_t number, Control *control)
#   mov eax, esi; mov [rdx+24], rax; jmp [rdx+8]
_INTERRUPT = bytes.fromhex("89f048894218488b42208120fffeffffff6208")
# bool invalid(uc, Control *control): exception 6 is intercepted like any other
#   mov qword [rsi+24], 0x146; sub rsp, 8; call [rsi+8]; add rsp, 8; mov eax, 1; ret
_INVALID = bytes.fromhex("48c74618460100004883ec08ff56084883c408b801000000c3")
_ALIGNMENT = 64

NO_EXIT = -1


class Control(ctypes.Structure):
    """What the hooks share with us."""

    budget: int
    stop: int
    address: int
    number: int
    request: int
    _fields_ = (
        ("budget", ctypes.c_int64),
        ("stop", ctypes.c_uint64),  # uc_emu_stop
        ("address", ctypes.c_uint64),  # linear address of the block that did not fit the budget
        ("number", ctypes.c_int64),  # exception, or 0x100 plus exit code
        ("request", ctypes.c_uint64),  # address of CPUState.interrupt_request, once it is known
        ("_none", ctypes.c_uint64),
    )


class Hooks:
    """The functions, at :attr:`block`, :attr:`interrupt` and :attr:`invalid`, and their control block."""

    def __init__(self, stop: int) -> None:
        self.control = Control(stop=stop, number=NO_EXIT)
        self.control.request = ctypes.addressof(self.control) + Control._none.offset
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._anchor = ctypes.c_char.from_buffer(self._page)
        base = ctypes.addressof(self._anchor)
        places = []
        for index, code in enumerate((_BLOCK, _INTERRUPT, _INVALID)):
            self._page.seek(index * _ALIGNMENT)
            self._page.write(code)
            places.append(base + index * _ALIGNMENT)
        self.block, self.interrupt, self.invalid = places

    @property
    def control_address(self) -> int:
        """What the hooks get as their last argument."""
        return ctypes.addressof(self.control)
