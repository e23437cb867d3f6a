# SPDX-License-Identifier: GPL-2.0-or-later
"""The hooks in machine code: they are what their source gives, and do what they say in a guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_seves.model.cpu import native
from pytest_seves.model.cpu.processor import Activity
from pytest_seves.spec import ghcb, kvm
from tests.model.cpu.board import C_BIT, SHARED, TABLE, Board, long_mode, map_at
from tests.model.cpu.test_guests import (
    APIC_ON,
    HLT,
    KEEP_ERROR_AND_SKIP,
    VMGEXIT,
    ask,
    event,
    machine_of,
    write_msr,
)

SOURCE = Path(native.__file__).with_suffix(".asm")


@pytest.mark.skipif(shutil.which("nasm") is None, reason="no nasm on PATH")
def test_bytes_are_the_sources(tmp_path: Path) -> None:
    """Assembling native.asm gives the committed bytes."""
    out = tmp_path / "native.bin"
    subprocess.run(["nasm", "-f", "bin", "-o", str(out), str(SOURCE)], check=True)
    assert native.image().rstrip(b"\xcc") == out.read_bytes()


def writes(board: Board) -> int:
    """Exits for CR0 and CR4."""
    counts = machine_of(board).trace.counts
    return counts[0x10] + counts[0x14] + counts[0x90]


#: mov rax, cr0; mov cr0, rax; mov rax, cr4; mov cr4, rax
SAME = bytes.fromhex("0f20c0 0f22c0 0f20e0 0f22e0")


@pytest.mark.parametrize("kind", ["es", "plain"])
def test_a_write_that_changes_nothing_is_no_exit(kind: str) -> None:
    """The guest restores CR0 and CR4 as they are, and goes on: mov byte [0x1000], 7; hlt."""
    board = long_mode(SAME * 3 + bytes.fromhex("c604250010000007") + HLT, kind)
    board.work()
    assert board.guest(0x1000, 1) == 7
    assert writes(board) == 0


def test_kvm_knows_of_each_change() -> None:
    """CR0.TS set, and cleared by CLTS, without an exit; CR0 is kept behind either: KVM_GET_SREGS has it."""
    keep = bytes.fromhex("0f20c3 48891c2500100000")
    code = bytes.fromhex("0f20c0 0c08 0f22c0") + keep
    for clear, wanted in ((b"", 8), (bytes.fromhex("0f06"), 0)):
        board = long_mode(code + clear + keep + HLT)
        board.work()
        assert board.guest(0x1000) & 8 == wanted
        assert kvm.SREGS.decode(board.vcpus[0]._visible_sregs())["cr0"] & 8 == wanted
        assert writes(board) == 0


@pytest.mark.parametrize(
    "code",
    ["0f20c0 0fbaf01f 0f22c0", "0f20e0 0fbaf005 0f22e0"],
    ids=["PG", "PAE"],
)
def test_long_mode_keeps_paging(code: str) -> None:
    """Clearing CR0.PG or CR4.PAE in 64-bit code is #GP at the instruction, which changes nothing.

    mov rax, cr0; btr eax, 31; mov cr0, rax; CR0 and CR4 kept; hlt. The handler keeps the error code, skips
    the instruction's three bytes and counts.
    """
    check = bytes.fromhex("0f20c3 48891c2508100000 0f20e3 48891c2510100000")
    skip = bytes.fromhex("8f042500100000 4883042403 48ff042518100000 48cf")
    board = long_mode(bytes.fromhex(code) + check + HLT, "plain", handlers={13: skip})
    board.work()
    assert (board.guest(0x1000), board.guest(0x1018)) == (0, 1)
    assert board.guest(0x1008) & 1 << 31
    assert board.guest(0x1010) & 1 << 5


def test_task_priority_is_read_back() -> None:
    """No exit, and the local APIC knows it: mov eax, 9; mov cr8, rax; mov rbx, cr8; mov [0x1000], rbx."""
    board = long_mode(bytes.fromhex("b809000000 440f22c0 440f20c3 48891c2500100000") + HLT)
    board.work()
    assert board.guest(0x1000) == 9
    assert machine_of(board).processors[0].lapic.processor_priority == 0x90
    assert machine_of(board).trace.counts[0x18] == 0


def test_priority_holds_an_interrupt_back_until_it_falls() -> None:
    """CR8 15, an interrupt to itself, a flag, CR8 0: the handler sees the flag.

    mov eax, 15; mov cr8, rax; x2APIC on; self-IPI 0x40; sti; nop; mov byte [0x1008], 1; xor eax, eax;
    mov cr8, rax; nop; cli; hlt. Handler: mov al, [0x1008]; mov [0x1010], al; inc qword [0x1000]; iretq
    """
    code = bytes.fromhex("b80f000000 440f22c0") + APIC_ON + write_msr(0x83F, 0x40)
    code += bytes.fromhex("fb 90 90 c604250810000001 31c0 440f22c0 90 fa f4")
    handler = bytes.fromhex("8a042508100000 88042510100000 48ff042500100000 48cf")
    board = long_mode(code, "plain", handlers={0x40: handler})
    board.work()
    assert (board.guest(0x1000), board.guest(0x1010, 1)) == (1, 1)


def test_ghcb_msr_is_no_exit() -> None:
    """Written and read back by each vCPU: edi is the number; wrmsr, rdmsr, kept at 0x1000 + 8 * edi.

    mov ecx, 0xc0010130; lea eax, [rdi + 5]; mov edx, 7; wrmsr; xor eax, eax; xor edx, edx; rdmsr;
    shl rdx, 32; or rax, rdx; mov [0x1000 + rdi * 8], rax; hlt
    """
    code = bytes.fromhex("b9300101c0 8d4705 ba07000000 0f30 31c0 31d2 f390 0f32 48c1e220 4809d0")
    code += bytes.fromhex("488904fd00100000") + HLT
    board = long_mode(code, vcpus=2)
    machine_of(board).processors[1].activity = Activity.RUNNABLE
    board.work()
    assert [board.guest(0x1000), board.guest(0x1008)] == [7 << 32 | 5, 7 << 32 | 6]
    assert machine_of(board).trace.counts[0x7C] == 0
    assert [p.ghcb.msr for p in machine_of(board).processors.values()] == [7 << 32 | 5, 7 << 32 | 6]


def test_a_vc_leaves_moves_intercepted() -> None:
    """CPUID between writes of CR0: its #VC comes, and the intercepts are on again behind each."""
    board = long_mode(SAME + bytes.fromhex("0fa2") + SAME + HLT, handlers={29: KEEP_ERROR_AND_SKIP})
    board.work()
    assert board.guest(0x1000) == 0x72
    assert machine_of(board).engine._cr_writes.value & 0x11 == 0x11


def test_a_ghcb_page_may_hold_code_later() -> None:
    """It is data to the engine until code is fetched from it; then a write to it is seen.

    The GHCB asks for SEV features and is done; its two MiB appear with the C-bit at 0x600000.
    mov byte [page], code; call it, twice, changed in between.
    """
    page, private = 0x300000, 0x700000
    # inc qword [0x1000]; ret, and inc qword [0x1008]; ret: the displacement's first byte is the fifth
    prepare = ask(event(ghcb.HV_FEATURES))
    put = b"".join(
        b"\xc6\x04\x25" + (private + at).to_bytes(4, "little") + bytes([value])
        for at, value in enumerate(bytes.fromhex("48ff042500100000c3"))
    )
    call = b"\xb8" + private.to_bytes(4, "little") + bytes.fromhex("ffd0")
    patch = b"\xc6\x04\x25" + (private + 4).to_bytes(4, "little") + b"\x08"
    clear = bytes.fromhex("48c7042500100000 00000000 48c7042508100000 00000000")
    vmgexit = write_msr(ghcb.GHCB_MSR, page) + VMGEXIT
    code = vmgexit + map_at(private, SHARED | C_BIT) + put + clear + call + patch + call + HLT
    board = long_mode(code, prepare=prepare)
    board.work()
    assert (board.guest(0x1000), board.guest(0x1008)) == (1, 1)


def test_a_page_of_data_may_be_a_page_table() -> None:
    """It is walked, and no code is looked for in what is only written: mov byte [0x1000], 7; hlt."""
    board = long_mode(bytes.fromhex("c604250010000007") + HLT, "es")
    board.work()
    assert board.guest(0x1000, 1) == 7
    memory = machine_of(board).memory
    assert memory.page(0x8000, True).executable
    assert not memory.page(0x1000, True).executable
    assert not memory.page(TABLE, True).executable
