# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of ptrace(2) that the recorder uses, through ctypes; x86-64 only.

A tracee may be killed between any two calls, so ESRCH is an ordinary answer: every function says with its
result whether the tracee was still there, and raises OSError for anything else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Optional

CONT = 7
SYSCALL = 24
LISTEN = 0x4208

_POKEUSER = 6
_GETREGS = 12
_SETREGS = 13
_GETEVENTMSG = 0x4201
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_GETSIGMASK = 0x420A
_SETSIGMASK = 0x420B
_GET_SYSCALL_INFO = 0x420E  # Linux 5.3

EVENT_FORK = 1
EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXEC = 4
EVENT_SECCOMP = 7
EVENT_STOP = 128

# TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP, EXITKILL
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000

SYSCALL_STOP = 0x85  # SIGTRAP | 0x80, because of TRACESYSGOOD
WALL = 0x40000000

INFO_ENTRY = 1
INFO_EXIT = 2
INFO_SECCOMP = 3
AUDIT_ARCH_X86_64 = 0xC000003E
SYS_IOCTL = 16
SYS_PRCTL = 157
PR_SET_NAME = 15

# Places in struct user_regs_struct, in units of eight bytes.
RAX = 10
RDX = 12
RSI = 13
RDI = 14
ORIG_RAX = 15
RIP = 16
RSP = 19
_REGISTERS = struct.Struct("27Q")

#: What an interrupted system call leaves in RAX for the kernel itself: the call restarts, or becomes EINTR.
RESTARTS = frozenset({-512, -513, -514, -516})

# PyDLL: the recorder has one thread, and giving up the interpreter lock for each call would only cost time.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_info = ctypes.create_string_buffer(88)
_info_address = ctypes.addressof(_info)
_entry = struct.Struct("B3xI16xQQQQ")
_result = struct.Struct("q")
_word = ctypes.c_ulong()
_registers = ctypes.create_string_buffer(_REGISTERS.size)


def check_machine() -> None:
    """Refuse a machine whose system calls this module does not know; raises OSError (ENOSYS)."""
    machine = platform.machine()
    if machine != "x86_64" or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"the recorder runs on 64-bit x86 only, this is {machine}")


def _failed(operation: int, tid: int) -> bool:
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        return False
    raise OSError(number, f"ptrace({operation:#x}, {tid}): {os.strerror(number)}")


def resume(operation: int, tid: int, signal: int = 0) -> bool:
    """CONT, SYSCALL or LISTEN; *signal* is delivered when the stop was a signal's."""
    return _ptrace(operation, tid, None, signal) != -1 or _failed(operation, tid)


def seize(tid: int) -> None:
    """Attach without stopping; raises OSError when that is not permitted."""
    if _ptrace(_SEIZE, tid, None, OPTIONS) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace(PTRACE_SEIZE, {tid}): {os.strerror(number)}")


def interrupt(tid: int) -> bool:
    """Ask for an EVENT_STOP; a blocking system call restarts by itself afterwards."""
    return _ptrace(_INTERRUPT, tid, None, None) != -1 or _failed(_INTERRUPT, tid)


def event_message(tid: int) -> Optional[int]:
    """The new process of a fork or clone, the former thread of an exec."""
    if _ptrace(_GETEVENTMSG, tid, None, ctypes.addressof(_word)) == -1:
        _failed(_GETEVENTMSG, tid)
        return None
    return _word.value


def syscall_entry(tid: int) -> tuple[int, int, int, int, int]:
    """(INFO_*, number, first three arguments) of a system call or seccomp stop; INFO 0: no such stop.

    A call made through another architecture's entry has the number -1.
    """
    if _ptrace(_GET_SYSCALL_INFO, tid, 88, _info_address) == -1:
        _failed(_GET_SYSCALL_INFO, tid)
        return 0, -1, 0, 0, 0
    kind, arch, number, first, second, third = _entry.unpack_from(_info)
    if arch != AUDIT_ARCH_X86_64:
        number = -1
    return kind, number, first, second, third


def syscall_result() -> int:
    """The raw result (-errno) of the exit stop that :func:`syscall_entry` was just asked about."""
    value: int = _result.unpack_from(_info, 24)[0]
    return value


def poke(tid: int, register: int, value: int) -> bool:
    """Write one register of a stopped tracee."""
    value &= 0xFFFFFFFFFFFFFFFF
    return _ptrace(_POKEUSER, tid, 8 * register, value) != -1 or _failed(_POKEUSER, tid)


def get_registers(tid: int) -> Optional[list[int]]:
    """All general registers in the order of struct user_regs_struct; None: the tracee is gone."""
    if _ptrace(_GETREGS, tid, None, ctypes.addressof(_registers)) == -1:
        _failed(_GETREGS, tid)
        return None
    return list(_REGISTERS.unpack(_registers.raw))


def set_registers(tid: int, values: list[int]) -> bool:
    """Write what :func:`get_registers` gave, changed or not."""
    _registers.raw = _REGISTERS.pack(*values)
    return _ptrace(_SETREGS, tid, None, ctypes.addressof(_registers)) != -1 or _failed(_SETREGS, tid)


def get_signal_mask(tid: int) -> int:
    """The set of blocked signals; 0 when the tracee is gone."""
    if _ptrace(_GETSIGMASK, tid, 8, ctypes.addressof(_word)) == -1:
        _failed(_GETSIGMASK, tid)
        return 0
    return _word.value


def set_signal_mask(tid: int, mask: int) -> bool:
    """Replace the set of blocked signals; the kernel looks at pending signals again at the resume."""
    _word.value = mask
    return _ptrace(_SETSIGMASK, tid, 8, ctypes.addressof(_word)) != -1 or _failed(_SETSIGMASK, tid)
