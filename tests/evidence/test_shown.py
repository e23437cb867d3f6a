# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers out of a monitor's text. Origin of the text: QEMU 7.2, `info registers -a`, shortened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.evidence.shown import registers_shown, unknown_values

TEXT = """
CPU#0
EAX=00000000 EBX=00000001 ECX=00000000 EDX=00800f12
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 00000000 00000000
CS =f000 ffff0000 0000ffff 00009b00
LDT=0000 00000000 0000ffff 00008200
GDT=     00001234 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR6=00000000ffff0ff0 DR7=0000000000000400
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=0000000000000001 0000000000000000 XMM01=0000000000000000 0000000000000000

CPU#1
RAX=0000000000000005 RBX=0000000000000000 R8 =0000000000000007 R10=0000000000000000
RIP=000000000000b004 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""


def test_registers_by_vcpu() -> None:
    """Both widths, segments, tables, control, debug and vector registers, by VMSA names."""
    shown = registers_shown(TEXT)
    assert sorted(shown) == [0, 1]
    bsp = shown[0]
    assert (bsp["rip"], bsp["cs.selector"], bsp["cs.base"], bsp["gdtr.base"]) == (
        0xFFF0,
        0xF000,
        0xFFFF0000,
        0x1234,
    )
    assert (bsp["rbx"], bsp["cr0"], bsp["dr6"], bsp["x87_fcw"], bsp["mxcsr"]) == (
        1,
        0x60000010,
        0xFFFF0FF0,
        0x37F,
        0x1F80,
    )
    assert bsp["xmm00"] == 1 << 64
    assert (shown[1]["r8"], shown[1]["rip"], shown[1]["rflags"]) == (7, 0xB004, 2)


def test_what_is_neither_zero_nor_given() -> None:
    """A value that the VMM can only have from the guest is named with what was wanted."""
    given = {"rip": 0xFFF0, "rflags": 2, "cs.base": 0xFFFF0000}
    assert unknown_values({"rip": 0, "rflags": 2, "rbx": 0, "cs.base": 0xFFFF0000}, given) == {}
    assert unknown_values({"rip": 0x1000, "rbx": 1}, given) == {
        "rip": "wanted 0 or 0xfff0, got 0x1000",
        "rbx": "wanted 0 or 0x0, got 0x1",
    }


@given(st.text(alphabet="CPU#0123=ABXRabcdef \n", max_size=200))
def test_any_text(text: str) -> None:
    """Nothing that a monitor can say crashes it."""
    registers_shown(text)
