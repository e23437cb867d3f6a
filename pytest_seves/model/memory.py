# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of the processes under the model."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = 4096
_PATH_MAX = 4096


class Refusal(Exception):
    """The system call that is being handled ends with -errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class TargetMemory:
    """One address space, by an open ``/proc/PID/mem``: usable by processes that are no ancestor of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes.

        :raise Refusal: EFAULT, as copy_from_user() would.
        """
        try:
            data = os.pread(self.descriptor, size, address)
        except (OSError, OverflowError):
            raise Refusal(errno.EFAULT) from None
        if len(data) != size:
            raise Refusal(errno.EFAULT)
        return data

    def write(self, address: int, data: bytes) -> None:
        """All of `data`.

        :raise Refusal: EFAULT, as copy_to_user() would.
        """
        try:
            done = os.pwrite(self.descriptor, data, address)
        except (OSError, OverflowError):
            raise Refusal(errno.EFAULT) from None
        if done != len(data):
            raise Refusal(errno.EFAULT)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_path_buffer = ctypes.create_string_buffer(_PATH_MAX)


def read_path(thread: int, address: int) -> bytes:
    """The zero-terminated string at `address` of a thread's memory; empty if it cannot be read.

    process_vm_readv(2): one system call for a path, where /proc/TID/mem takes three.
    """
    first = _PAGE - address % _PAGE
    local = _IoVec(ctypes.addressof(_path_buffer), _PATH_MAX)
    pieces = (_IoVec * 2)(_IoVec(address, first), _IoVec(address + first, _PATH_MAX - first))
    count = 2 if first < _PATH_MAX else 1
    got = _libc.process_vm_readv(thread, ctypes.byref(local), 1, ctypes.byref(pieces), count, 0)
    if got <= 0:
        return b""
    return bytes(_path_buffer.raw[:got].partition(b"\0")[0])
