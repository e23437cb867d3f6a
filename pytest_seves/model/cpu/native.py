# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks as machine code: what unicorn calls for blocks, exits and port accesses, without entering Python.

A stop from another thread can hit unicorn between the load and the store of one instruction, which then
executes twice. A stop from a block's hook takes effect before the block's first instruction, always. So the
block hook counts a budget down and stops there; the count also makes preemption repeatable.

Two things end within a hook, because firmware does them at every #VC. In 64-bit code a move to CR0 or CR4
executes with its intercept off; only one that clears PE, PG or PAE, which is a fault there, stops behind it.
The GHCB MSR and SEV_STATUS, which hardware does not intercept either, are :attr:`Control.ghcb` and
:attr:`Control.sev_status`.

A page that holds no code is mapped so that none can be fetched: then the engine need not look for code at
each write of it.

`walk` is what walks.py puts before a function of the engine's.

The source is native.asm beside this file (``nasm -f bin native.asm``); a test compares.
"""

from __future__ import annotations

import ctypes
import functools
import mmap

_ALIGNMENT = 0x200
#: In this order, at multiples of the alignment.
FUNCTIONS = {
    "block": (
        "48ff097801c34883796000744e48c7416000000000488b413066830811488b416848ffc84889014c8b4148418b90a801"
        "000081e20100008081fa01000080751341f780c80100002000000074064885c07809c348c741189001000048897110ff"
        "6108"
    ),
    "interrupt": (
        "81fe100100000f848600000081fe14010000747e81fe7c0100000f84c900000048837a6000743b48c742600000000048"
        "8b423066830811488b42684889024c8b4248418b80a801000025010000803d01000080752041f780c801000020000000"
        "741389f048894218488b42208120fffeffffff6208498b8080000000490380d80000004889421048c7421890010000ff"
        "6208488b4248f780b0000000008000000f847affffff488b88a801000048894a70488b88c801000048894a78488b8880"
        "00000048898a80000000488b0a48894a6848c7020100000048c7426001000000488b4a30668321eec3488b4248b93001"
        "01c02b4808742bffc10f8521ffffff488b4a38f701010000000f8511ffffff8b8ad000000048890848c7401000000000"
        "eb3148837a58000f84f3feffff488b4a38f70101000000750f8b4a504889088b4a5448894810eb0b8b08894a508b4810"
        "894a54488380800000000283a0b0000000f7c3"
    ),
    "invalid": ("4889f2be460100004883ec08e8effdffff4883c408b801000000c3"),
    "in": ("4989c831c9b801000000e9f6010000"),
    "out": (
        "b8020000004189b0880000004189908c0000004189889000000041898094000000498b4048488b888000000049898898"
        "000000488b08498988a0000000488b4830498988a8000000488b4838498988b0000000488b4808498988b8000000498b"
        "4040488b08498988c0000000488b4838498988c800000089f648893048c740380204020031c0c3"
    ),
    "walk": (
        "488b05010400004885c9742cf6040701740f83fa02750a480fbaee277203832104909090909090909090909090909090"
        "9090ff25c8030000488b0dd1030000f604070174dc480fbaee27ebd5"
    ),
    "syscall": ("4889f2be00020000e913f6ffff"),
}

#: Bit of a guest physical address.
C_BIT = 39
NO_EXIT = -1
SYSCALL = 0x200
_WALK = 0xE00


class Control(ctypes.Structure):
    """What the hooks share with us; offsets are native.asm's."""

    budget: int
    stop: int
    address: int
    number: int
    request: int
    cr_writes: int
    error: int
    debug: int
    state: int
    ghcb: int
    encrypted: int
    kept_cr0: int
    kept_cr4: int
    kept_eip: int
    port: int
    size: int
    value: int
    kind: int
    sev_status: int
    kept: ctypes.Array[ctypes.c_uint64]
    _fields_ = (
        ("budget", ctypes.c_int64),
        ("stop", ctypes.c_uint64),  # uc_emu_stop
        ("address", ctypes.c_uint64),  # linear address of the block that did not fit the budget
        ("number", ctypes.c_int64),  # exception, 0x100 plus exit code, or SYSCALL
        ("request", ctypes.c_uint64),  # address of CPUState.interrupt_request, once it is known
        ("_none", ctypes.c_uint64),
        ("cr_writes", ctypes.c_uint64),  # addresses in CPUX86State: intercept_cr_write,
        ("error", ctypes.c_uint64),  # error_code,
        ("debug", ctypes.c_uint64),  # dr,
        ("state", ctypes.c_uint64),  # and of itself
        ("ghcb", ctypes.c_uint64),  # the GHCB MSR
        ("encrypted", ctypes.c_uint64),  # whether there is one
        ("_stepping", ctypes.c_uint64),
        ("_kept_budget", ctypes.c_int64),
        ("kept_cr0", ctypes.c_uint64),  # before a write trap
        ("kept_cr4", ctypes.c_uint64),
        ("kept_eip", ctypes.c_uint64),
        ("port", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("value", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),  # 1 IN, 2 OUT; 0 once it is taken back
        ("kept", ctypes.c_uint64 * 7),  # eip, rax, rsi, rdi, rcx, dr0, dr7 before the access
        ("sev_status", ctypes.c_uint64),  # SEV_STATUS
    )


class Walk(ctypes.Structure):
    """What `walk` knows of the engine; offsets are native.asm's."""

    back: int
    nested_cr3: int
    no_prot: int
    _fields_ = (
        ("back", ctypes.c_uint64),  # where get_hphys() goes on
        ("nested_cr3", ctypes.c_uint64),  # offset in CPUState
        ("no_prot", ctypes.c_uint64),  # address of what is written for a table
    )


class Code:
    """The functions in memory that can be executed."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._anchor = ctypes.c_char.from_buffer(self._page)
        self._page.write(image())
        self._base = ctypes.addressof(self._anchor)
        self.functions = {name: self._base + index * _ALIGNMENT for index, name in enumerate(FUNCTIONS)}
        self.walk = Walk.from_address(self._base + _WALK)
        self._no_prot = ctypes.c_uint32()
        self.walk.no_prot = ctypes.addressof(self._no_prot)

    def put(self, name: str, old: bytes, new: bytes) -> None:
        """Replace bytes of a function."""
        at = self._page.find(old, self.functions[name] - self._base)
        self._page[at : at + len(new)] = new


@functools.cache
def code() -> Code:
    """One for the process, as the library is."""
    return Code()


class Hooks:
    """The functions' addresses, by name in `functions`, and their control block."""

    def __init__(self, stop: int) -> None:
        self.control = Control(stop=stop, number=NO_EXIT)
        nowhere = ctypes.addressof(self.control) + Control._none.offset
        self.control.request = self.control.cr_writes = nowhere
        self.functions = code().functions

    @property
    def control_address(self) -> int:
        """What the hooks get as their last argument."""
        return ctypes.addressof(self.control)


def image() -> bytes:
    """The functions as they lie in memory, INT3 between them."""
    return b"".join(bytes.fromhex(code).ljust(_ALIGNMENT, b"\xcc") for code in FUNCTIONS.values())
