# SPDX-License-Identifier: GPL-2.0-or-later
"""The seccomp filter: what it assembles to and what it decides, run through a tiny BPF machine."""

from __future__ import annotations

import struct

import pytest

from pytest_seves.model import bpf
from pytest_seves.model.bpf import Instruction

ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000


def decide(number: int, *arguments: int, arch: int = bpf.AUDIT_ARCH_X86_64) -> int:
    """Run the assembled filter on one system call, by the rules of Documentation/networking/filter.rst."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *(value & (1 << 64) - 1 for value in padded))
    code = list(struct.iter_unpack("<HBBI", bpf.assemble(bpf.model_filter())))
    accumulator, place = 0, 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        else:
            assert operation == 0x15
            place += if_true if accumulator == value else if_false


def test_jump_to_no_label_is_refused() -> None:
    """A misspelt label must not become a jump to somewhere."""
    with pytest.raises(ValueError, match="'nowhere', which is no label"):
        bpf.assemble([Instruction(0x15, 0, "nowhere")])


def test_backward_jump_is_refused() -> None:
    """BPF has no loops."""
    with pytest.raises(ValueError, match="0 to 255 forward"):
        bpf.assemble([Instruction(0x06, 0, label="start"), Instruction(0x15, 0, "start")])


def test_other_architecture_is_left_alone() -> None:
    """The numbers are x86-64's only."""
    assert decide(bpf.NR_IOCTL, 3, 0xAE80, arch=0x40000003) == ALLOW


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (bpf.NR_IOCTL, (3, 0xAE80)),
        (bpf.NR_IOCTL, (3, 0xFFFFFFFFC008AEBA)),  # glibc passes the request sign-extended
        (bpf.NR_IOCTL, (3, 0xC0105300)),
        (bpf.NR_OPEN, (0, 0)),
        (bpf.NR_OPENAT, (-100, 0, 2)),
        (bpf.NR_OPENAT2, (-100, 0, 0, 24)),
        (bpf.NR_PREAD64, (3, 0, 16, 0x8000001F)),
        (bpf.NR_UNAME, (0,)),
        (bpf.NR_TGKILL, (1, 1, 10)),
    ],
)
def test_model_is_asked(number: int, arguments: tuple[int, ...]) -> None:
    """Calls through which a process could see that there is no such hardware."""
    assert decide(number, *arguments) == NOTIFY


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (bpf.NR_IOCTL, (3, 0x5401)),  # TCGETS
        (bpf.NR_IOCTL, (3, 0x5300)),  # a CD-ROM ioctl: type 'S' like SEV_ISSUE_CMD
        (bpf.NR_PREAD64, (3, 0, 4096, 0)),
        (bpf.NR_TGKILL, (1, 1, 6)),
        (0, (3, 0, 16)),  # read
    ],
)
def test_kernel_goes_on_alone(number: int, arguments: tuple[int, ...]) -> None:
    """Everything else costs nothing."""
    assert decide(number, *arguments) == ALLOW
