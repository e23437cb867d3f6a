# SPDX-License-Identifier: GPL-2.0-or-later
"""The seccomp filter that stops a VMM at the recorded ioctls, and nowhere else.

Documentation/userspace-api/seccomp_filter.rst; struct seccomp_data in include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Optional

from pytest_seves.agent.ptrace import AUDIT_ARCH_X86_64, SYS_IOCTL
from pytest_seves.spec import kvm

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCH, _REQUEST, _ARGUMENT = 0, 4, 24, 32  # offsets into struct seccomp_data, low halves
ALLOW, TRACE = 0x7FFF0000, 0x7FF00000

_SYS_SECCOMP = 317
_SET_MODE_FILTER = 1
# Without it, kernels before 5.16 turn on mitigations that slow the guest down (spec_store_bypass_disable).
_SPEC_ALLOW = 4
_PR_SET_NO_NEW_PRIVS = 38

Instruction = tuple[int, int, int, int]


def _only(value: int) -> list[Instruction]:
    return [(_EQUAL, 1, 0, value), (_RETURN, 0, 0, ALLOW)]


def _any(values: Iterable[int]) -> list[Instruction]:
    code = []
    for value in sorted(values):
        code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, TRACE)]
    return code


def program(requests: Iterable[int], capabilities: Optional[Iterable[int]]) -> list[Instruction]:
    """TRACE for ioctl(2) with one of *requests*, ALLOW for everything else.

    KVM_CHECK_EXTENSION, if it is among the requests, is traced for *capabilities* only (None: all): a VMM
    asks for hundreds. Every jump is short, so there is no limit to the number of requests.
    """
    wanted = set(requests)
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCH), *_only(AUDIT_ARCH_X86_64)]
    code += [(_LOAD, 0, 0, _NUMBER), *_only(SYS_IOCTL), (_LOAD, 0, 0, _REQUEST)]
    if kvm.KVM_RUN not in wanted:
        code += [(_EQUAL, 0, 1, kvm.KVM_RUN), (_RETURN, 0, 0, ALLOW)]
    if capabilities is None or kvm.KVM_CHECK_EXTENSION not in wanted:
        return [*code, *_any(wanted), (_RETURN, 0, 0, ALLOW)]
    code += _any(wanted - {kvm.KVM_CHECK_EXTENSION})
    code += [*_only(kvm.KVM_CHECK_EXTENSION), (_LOAD, 0, 0, _ARGUMENT), *_any(capabilities)]
    return [*code, (_RETURN, 0, 0, ALLOW)]


def install(code: list[Instruction]) -> None:
    """Put the filter on the calling thread and all that it will start; raises OSError.

    With CAP_SYS_ADMIN set-uid helpers of the VMM keep working; without it they lose their bit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
    arguments = (_SYS_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW, header)
    if libc.syscall(*arguments) == 0:
        return
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp filter refused: {os.strerror(number)}")
