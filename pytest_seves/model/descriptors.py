# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of descriptors that a process under the model has.

pidfd_getfd(2) asks for what ptrace does, which a security module may leave to ancestors. So a guest's
supervisor, which is none, asks the session, which is one: numbers one way, results and descriptors back.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence

_NR_PIDFD_GETFD = 438
_MOST = 2
_MESSAGE = struct.Struct(f"=B{_MOST}i")

_libc = ctypes.CDLL(None, use_errno=True)


def is_message(data: bytes) -> bool:
    """Whether it is a question or an answer, and no other word on the channel."""
    return len(data) == _MESSAGE.size


def question(numbers: Sequence[int]) -> bytes:
    """Ask for these."""
    return _MESSAGE.pack(len(numbers), *numbers, *[-1] * (_MOST - len(numbers)))


def answer(channel: socket.socket, process: int, message: bytes) -> None:
    """Answer a question about the process of this pidfd."""
    count, *numbers = _MESSAGE.unpack(message)
    results = [_copy(process, number) for number in numbers[:count]]
    copies = [result for result in results if result >= 0]
    try:
        socket.send_fds(channel, [question([min(result, 0) for result in results])], copies)
    finally:
        for copy in copies:
            os.close(copy)


def results(message: bytes, copies: Sequence[int]) -> list[int]:
    """From an answer and what came with it: for each number a descriptor, or -errno."""
    count, *codes = _MESSAGE.unpack(message)
    left = iter(copies)
    return [code or next(left) for code in codes[:count]]


def _copy(process: int, number: int) -> int:
    copy: int = _libc.syscall(_NR_PIDFD_GETFD, process, number, 0)
    return copy if copy >= 0 else -ctypes.get_errno()
