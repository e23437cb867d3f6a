# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program whose KVM_MEMORY_ENCRYPT_OP is answered with 5 by a seccomp user-notification listener."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys

from pytest_seves.agent import bpf
from pytest_seves.spec.kvm import KVM_MEMORY_ENCRYPT_OP

USER_NOTIF = 0x7FC00000
RECEIVE, SEND = 0xC0502100, 0xC0182101


def main() -> int:
    """Install the filter, start the program, answer until it ends."""
    code = [
        (0x06, 0, 0, USER_NOTIF) if instruction[0] == 0x06 and instruction[3] == bpf.TRACE else instruction
        for instruction in bpf.program({KVM_MEMORY_ENCRYPT_OP}, ())
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
    libc.prctl(38, 1, 0, 0, 0)
    listener = libc.syscall(317, 1, 8, header)  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        print(f"no listener: errno {ctypes.get_errno()}", file=sys.stderr)
        return 99
    os.set_inheritable(listener, False)
    child = os.fork()
    if child == 0:
        os.execv(sys.argv[1], sys.argv[1:])
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ready.get(listener, 0) & select.POLLIN:
            notification = bytearray(80)
            fcntl.ioctl(listener, RECEIVE, notification)
            (number,) = struct.unpack_from("<Q", notification)
            fcntl.ioctl(listener, SEND, bytearray(struct.pack("<QqiI", number, 5, 0, 0)))
        elif ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


sys.exit(main())
