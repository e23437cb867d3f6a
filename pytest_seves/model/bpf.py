# SPDX-License-Identifier: GPL-2.0-or-later
"""The seccomp filter that decides which system calls the model is asked about.

Source: Linux ``include/uapi/linux/{filter,seccomp,audit}.h``. Only x86-64 numbers; everything else passes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

AUDIT_ARCH_X86_64 = 0xC000003E
NR_OPEN = 2
NR_IOCTL = 16
NR_PREAD64 = 17
NR_UNAME = 63
NR_TGKILL = 234
NR_OPENAT = 257
NR_OPENAT2 = 437

#: Which arguments of a call that opens are the path and the flags (openat2 has them in a structure).
OPENS = {NR_OPEN: (0, 1), NR_OPENAT: (1, 2), NR_OPENAT2: (1, None)}

KVM_IOCTL_TYPE = 0xAE00
SEV_ISSUE_CMD = 0xC0105300  # the whole number: 'S' ioctls are shared with CD-ROM drives
SIGUSR1 = 10
CPUID_READ_SIZE = 16

_RET_ALLOW = 0x7FFF0000
_RET_USER_NOTIF = 0x7FC00000

_LD_ABS = 0x20
_JEQ = 0x15
_RET = 0x06
_AND = 0x54

_OFFSET_NR = 0
_OFFSET_ARCH = 4


def _argument(index: int) -> int:
    return 16 + 8 * index  # the low half: the kernel looks at 32 bits of each value tested here


class Instruction(NamedTuple):
    """One BPF instruction. `label` names its place; jumps name labels, None is the next instruction."""

    code: int
    value: int
    if_true: str | None = None
    if_false: str | None = None
    label: str | None = None


def model_filter() -> list[Instruction]:
    """Notify ioctls of KVM and /dev/sev, opens, CPUID reads, uname and kicks; allow all else."""
    numbers = {
        NR_IOCTL: "ioctl",
        NR_OPENAT: "notify",
        NR_OPEN: "notify",
        NR_OPENAT2: "notify",
        NR_PREAD64: "pread",
        NR_TGKILL: "tgkill",
        NR_UNAME: "notify",
    }
    return [
        Instruction(_LD_ABS, _OFFSET_ARCH),
        Instruction(_JEQ, AUDIT_ARCH_X86_64, None, "allow"),
        Instruction(_LD_ABS, _OFFSET_NR),
        *(Instruction(_JEQ, number, target) for number, target in numbers.items()),
        Instruction(_RET, _RET_ALLOW, label="allow"),
        Instruction(_LD_ABS, _argument(1), label="ioctl"),
        Instruction(_JEQ, SEV_ISSUE_CMD, "notify"),
        Instruction(_AND, 0xFF00),
        Instruction(_JEQ, KVM_IOCTL_TYPE, "notify", "pass"),
        Instruction(_LD_ABS, _argument(2), label="pread"),
        Instruction(_JEQ, CPUID_READ_SIZE, "notify", "pass"),
        Instruction(_LD_ABS, _argument(2), label="tgkill"),
        Instruction(_JEQ, SIGUSR1, "notify", "pass"),
        Instruction(_RET, _RET_ALLOW, label="pass"),
        Instruction(_RET, _RET_USER_NOTIF, label="notify"),
    ]


def assemble(program: list[Instruction]) -> bytes:
    """struct sock_filter[], jumps resolved.

    :raise ValueError: a jump goes backwards, too far, or to no label.
    """
    places = {item.label: index for index, item in enumerate(program) if item.label}
    out = bytearray()
    for index, item in enumerate(program):
        out += struct.pack(
            "=HBBI",
            item.code,
            _distance(places, index, item.if_true),
            _distance(places, index, item.if_false),
            item.value,
        )
    return bytes(out)


def _distance(places: dict[str, int], index: int, target: str | None) -> int:
    if target is None:
        return 0
    if target not in places:
        raise ValueError(f"instruction {index} jumps to {target!r}, which is no label")
    distance = places[target] - index - 1
    if not 0 <= distance <= 255:
        raise ValueError(f"instruction {index} jumps {distance} to {target!r}; BPF goes 0 to 255 forward")
    return distance
