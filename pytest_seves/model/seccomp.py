# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls of a process tree, answered by us: seccomp user notification.

Sources: Linux ``include/uapi/linux/seccomp.h`` and seccomp_unotify(2). Needs Linux 5.14 (ADDFD with SEND).
"""

from __future__ import annotations

import array  # noqa: F401  socket.send_fds imports it; under the filter that import would wait for us
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence

from .bpf import Instruction, assemble

_libc = ctypes.CDLL(None, use_errno=True)

_NR_SECCOMP = 317
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_FLAG_WAIT_KILLABLE_RECV = 1 << 5

_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADDFD = 0x40182103
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_ADDFD_SEND = 1 << 1
_SIGSET_SIZE = 128  # sigset_t of glibc
_SIGINFO_SIZE = 128  # struct signalfd_siginfo

_RESPONSE = struct.Struct("=QqiI")
_NEW_DESCRIPTOR = struct.Struct("=QIIII")

#: struct seccomp_notif: id, pid (a thread), flags, nr, arch, instruction pointer, six arguments.
NOTIFICATION = struct.Struct("=QIIiIQ6Q")


class SeccompUnavailable(OSError):
    """The kernel refused the filter."""


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent dies. The caller checks that the parent is still the one it knew."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def signal_descriptor(numbers: Sequence[int]) -> int:
    """Block these signals, and read them from the descriptor instead (signalfd(2)).

    A handler will not do for one who answers notifications: a signal that interrupts the ioctl ADDFD with
    SECCOMP_ADDFD_FLAG_SEND takes back the descriptor, but not the answer, and the target's open() returns 0.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(_SIGSET_SIZE, sys.byteorder)
    descriptor: int = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"signalfd: {os.strerror(number)}")
    return descriptor


def read_signal(descriptor: int) -> int:
    """Number of one signal that has arrived (``ssi_signo``)."""
    return int.from_bytes(os.read(descriptor, _SIGINFO_SIZE)[:4], sys.byteorder)


def install(program: list[Instruction]) -> int:
    """Put the filter on this thread for good and return the listener's descriptor.

    :raise SeccompUnavailable: the kernel lacks it, or a listener is already installed above us (EBUSY).
    """
    code = assemble(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    number = 0
    for flags in (_FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV, _FLAG_NEW_LISTENER):
        listener: int = _libc.syscall(_NR_SECCOMP, _SET_MODE_FILTER, flags, header)
        if listener >= 0:
            return listener
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: no WAIT_KILLABLE_RECV before Linux 5.19
            break
    raise SeccompUnavailable(number, f"seccomp listener: {os.strerror(number)}")


def send_listener(channel: socket.socket, listener: int) -> None:
    """Hand the listener to the supervisor; until then, the filtered side must not open or import a thing."""
    socket.send_fds(channel, [b"l"], [listener])


class Listener:
    """The supervisor's end: receive notifications, answer each exactly once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._zero = bytes(NOTIFICATION.size)
        try:
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:  # before Linux 6.6; only slower
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def receive(self, buffer: bytearray) -> bool:
        """Fill `buffer` with the next notification; False if it was withdrawn meanwhile (thread killed)."""
        buffer[:] = self._zero
        try:
            fcntl.ioctl(self.descriptor, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return False
            raise
        return True

    def answer(self, identifier: int, value: int) -> None:
        """The system call returns `value`; a negative one is -errno."""
        if value < 0:
            self._send(_RESPONSE.pack(identifier, 0, value, 0))
        else:
            self._send(_RESPONSE.pack(identifier, value, 0, 0))

    def let_through(self, identifier: int) -> None:
        """The kernel executes the system call as if we were not here."""
        self._send(_RESPONSE.pack(identifier, 0, 0, _CONTINUE))

    def add_descriptor(self, identifier: int, descriptor: int, close_on_exec: bool) -> int | None:
        """Answer with a copy of `descriptor`; its number in the target, None if the target is gone."""
        flags = os.O_CLOEXEC if close_on_exec else 0
        # A bytearray: with bytes, fcntl.ioctl returns the buffer and not the number.
        request = bytearray(_NEW_DESCRIPTOR.pack(identifier, _ADDFD_SEND, descriptor, 0, flags))
        try:
            number: int = fcntl.ioctl(self.descriptor, _ADDFD, request)
            return number
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS, errno.ESRCH):
                return None
            if error.errno == errno.EMFILE:
                self.answer(identifier, -errno.EMFILE)
                return None
            raise

    def alive(self) -> bool:
        """False once no process is left under the filter."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in poller.poll(0))

    def valid(self, identifier: int) -> bool:
        """Whether the target still waits for this answer, so that what we read of it was its own."""
        try:
            fcntl.ioctl(self.descriptor, _ID_VALID, struct.pack("=Q", identifier))
        except OSError:
            return False
        return True

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.descriptor, _SEND, response)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the target was killed, or a signal took the call back
                raise
