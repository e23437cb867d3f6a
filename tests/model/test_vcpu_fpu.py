# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the FPU's state reaches a save area."""

from __future__ import annotations

import struct

import pytest

from pytest_seves.model.vcpu_fpu import FpuState
from pytest_seves.spec.vmsa import VMSA


def xsave(components: int) -> bytes:
    """An area in which every byte of every component is set."""
    area = bytearray(b"\xa5" * 832).ljust(4096, b"\0")
    struct.pack_into("<Q", area, 512, components)
    return bytes(area)


@pytest.mark.parametrize(
    ("components", "fcw", "mxcsr", "xmm", "ymm"),
    [
        (0b000, 0x37F, 0x1F80, 0, 0),
        (0b001, 0xA5A5, 0xA5A5A5A5, 0, 0),
        (0b010, 0x37F, 0xA5A5A5A5, 0xA5, 0),
        (0b100, 0x37F, 0xA5A5A5A5, 0, 0xA5),
    ],
)
def test_components_left_out_keep_their_value(
    components: int, fcw: int, mxcsr: int, xmm: int, ymm: int
) -> None:
    """KVM_SET_XSAVE touches what the header names; any vector component brings MXCSR."""
    state = FpuState()
    state.set_xsave(xsave(components))
    fields = state.vmsa_fields()
    assert (fields["x87_fcw"], fields["mxcsr"]) == (fcw, mxcsr)
    assert (fields["fpreg_xmm"], fields["fpreg_ymm"]) == (bytes([xmm]) * 256, bytes([ymm]) * 256)


def test_ymm_is_dropped_when_its_bit_goes() -> None:
    """get_xsave_addr() finds no YMM once a later header leaves it out."""
    state = FpuState()
    state.set_xsave(xsave(0b111))
    state.set_xsave(xsave(0b011))
    assert state.vmsa_fields()["fpreg_ymm"] == bytes(256)


def test_set_fpu_leaves_mxcsr() -> None:
    """KVM_SET_FPU has the field and ignores it; the order of kvm_fpu differs from FXSAVE's."""
    state = FpuState()
    registers = b"".join(bytes([n]) * 8 + bytes([0x10 + n]) * 2 + bytes(6) for n in range(8))
    tail = struct.pack("<HHBxHQQ", 1, 2, 3, 4, 5, 6)
    state.set_fpu(registers + tail + b"\x77" * 256 + struct.pack("<II", 0xFFFF, 0))
    fields = state.vmsa_fields()
    names = ("x87_fcw", "x87_fsw", "x87_ftw", "x87_fop", "x87_rip", "x87_dp", "mxcsr")
    assert [fields[name] for name in names] == [1, 2, 3, 4, 5, 6, 0x1F80]
    assert fields["fpreg_x87"][:16] == bytes([0] * 8 + [1] * 8)
    assert fields["fpreg_x87"][64:68] == bytes([0x10, 0x10, 0x11, 0x11])
    assert fields["fpreg_xmm"] == b"\x77" * 256


def test_fields_are_the_save_areas() -> None:
    """Every name and size is one of the layout's."""
    assert len(VMSA.encode(**FpuState().vmsa_fields())) == VMSA.size
