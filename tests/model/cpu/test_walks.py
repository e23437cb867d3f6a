# SPDX-License-Identifier: GPL-2.0-or-later
"""What is private whatever a C-bit says: page tables and code, APM volume 2, 15.34.5."""

from __future__ import annotations

import pytest

from pytest_seves.model import encryption
from pytest_seves.model.cpu import engine, walks
from pytest_seves.model.cpu.binding import EngineUnavailable
from pytest_seves.model.cpu.engine import Engine
from tests.model.cpu.board import ALIAS, C_BIT, HOST, KEY, TABLE, Board, long_mode
from tests.model.cpu.test_guests import HLT, KEEP_ERROR_AND_SKIP, VMGEXIT, write_msr

ROOT = TABLE - 0x2000
#: mov byte [0x1000], 7
SEVEN = bytes.fromhex("c604250010000007")
LAST_TABLE = 0x20000
ENCRYPTED = ["es", "sev"]


def entries(board: Board, address: int, *values: int) -> None:
    """A table, its page encrypted as the guest's tables are."""
    board.put(address, b"".join(value.to_bytes(8, "little") for value in values))


def load(register: str, address: int) -> bytes:
    """mov rax or rbx, [address]."""
    return bytes.fromhex({"rax": "488b0425", "rbx": "488b1c25"}[register]) + address.to_bytes(4, "little")


def keep_rbx(address: int) -> bytes:
    """mov [address], rbx."""
    return bytes.fromhex("48891c25") + address.to_bytes(4, "little")


def put_byte(address: int, value: int) -> bytes:
    """mov byte [address], value."""
    return bytes.fromhex("c60425") + address.to_bytes(4, "little") + bytes([value])


def jump(address: int) -> bytes:
    """mov eax, address; jmp rax."""
    return b"\xb8" + address.to_bytes(4, "little") + bytes.fromhex("ffe0")


@pytest.mark.parametrize("kind", [*ENCRYPTED, "plain"])
def test_tables_need_no_c_bit(kind: str) -> None:
    """The entries of pages have it, not CR3 nor those of tables: mov eax, ROOT; mov cr3, rax; SEVEN."""

    def prepare(board: Board) -> None:
        entries(board, ROOT, ROOT + 0x1007)
        entries(board, ROOT + 0x1000, ROOT + 0x2007)

    code = b"\xb8" + ROOT.to_bytes(4, "little") + bytes.fromhex("0f22d8") + SEVEN + HLT
    board = long_mode(code, kind, prepare=prepare)
    board.work()
    assert board.guest(0x1000, 1, private=kind != "plain") == 7
    assert not board.results


def test_a_plain_guest_has_no_c_bit() -> None:
    """Bit 39 of a table's address is the address: no memory is there."""
    code = put_byte(0x1000, 7) + load("rax", 0x600000) + put_byte(0x1000, 8) + HLT

    def prepare(board: Board) -> None:
        entries(board, TABLE, 0x87, 0x200087, 0x87, LAST_TABLE + 7 | C_BIT)
        entries(board, LAST_TABLE, 0x3007)

    board = long_mode(code, "plain", prepare=prepare)
    board.work()
    assert board.guest(0x1000, 1, private=False) == 7


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_code_is_private_where_data_is_shared(kind: str) -> None:
    """A function is called without the C-bit, and read: code is plaintext, data at its address ciphertext.

    mov qword [0x1000], 0; called and read twice, then read with the C-bit: inc qword [0x1000]; ret.
    """
    at, function = 0x2000, bytes.fromhex("48ff042500100000 c3")
    clear = bytes.fromhex("48c7042500100000 00000000")
    call = b"\xb8" + (ALIAS + at).to_bytes(4, "little") + bytes.fromhex("ffd0")
    read = load("rbx", ALIAS + at)
    code = clear + call + read + keep_rbx(0x1008) + call + read + keep_rbx(0x1010) + load("rbx", at)
    board = long_mode(code + keep_rbx(0x1018) + HLT, kind, prepare=lambda board: board.put(at, function))
    ciphertext = int.from_bytes(board.memory.ram[at : at + 8], "little")
    board.work()
    assert board.guest(0x1000) == 2
    assert [board.guest(0x1008), board.guest(0x1010)] == [ciphertext, ciphertext]
    assert board.guest(0x1018) == int.from_bytes(function[:8], "little")


def test_an_intercepted_instruction_is_read_as_it_was_fetched() -> None:
    """VMGEXIT at an address without the C-bit is one: it asks for SEV information, and reads the answer.

    cpuid is #VC there, whose handler keeps the error code and skips it.
    """
    read = bytes.fromhex("b9300101c0 0f32 48c1e220 4809d0 48890425 18100000")
    here = write_msr(0xC0010130, 2) + VMGEXIT + read + bytes.fromhex("0fa2") + HLT
    code = jump(ALIAS + 0x8400).ljust(0x400, b"\x90") + here
    board = long_mode(code, handlers={29: KEEP_ERROR_AND_SKIP})
    board.work()
    assert board.guest(0x1018) & 0xFFF == 1
    assert board.guest(0x1000) == 0x72


@pytest.mark.parametrize("kind", ENCRYPTED)
def test_a_table_is_read_and_becomes_shared_data(kind: str) -> None:
    """While it is a table, a read without the C-bit is ciphertext and the walk goes on; a write is data.

    0x600000 is 0x3000 by a table that is reached without the C-bit. mov byte [0x600000], 5; rbx = [table
    without the C-bit]; invlpg [0x600000]; mov byte [0x600001], 6; mov byte [0x3002], 7; mov [table without
    the C-bit], "shared, "; rbx = [table].
    """

    def prepare(board: Board) -> None:
        entries(board, TABLE, 0x87 | C_BIT, 0x200087, 0x87, LAST_TABLE | 7)
        entries(board, LAST_TABLE, 0x3067 | C_BIT)

    alias = ALIAS + LAST_TABLE
    code = put_byte(0x600000, 5) + load("rbx", alias) + keep_rbx(0x1000)
    code += bytes.fromhex("0f013c2500006000") + put_byte(0x600001, 6) + put_byte(0x3002, 7)
    code += b"\x48\xb8" + b"shared, " + b"\x48\x89\x04\x25" + alias.to_bytes(4, "little")
    code += load("rbx", LAST_TABLE) + keep_rbx(0x1008) + HLT
    board = long_mode(code, kind, prepare=prepare)
    table = bytes(board.memory.ram[LAST_TABLE : LAST_TABLE + 0x1000])
    board.work()
    assert board.guest(0x3000, 3) == 0x070605
    assert board.guest(0x1000) == int.from_bytes(table[:8], "little")
    shared = b"shared, " + table[8:]
    noise = encryption.decrypt(KEY, HOST + LAST_TABLE, shared)
    assert board.guest(0x1008) == int.from_bytes(noise[:8], "little")
    assert board.guest(LAST_TABLE, private=False).to_bytes(8, "little") == b"shared, "


@pytest.mark.parametrize("kind", ENCRYPTED)
@pytest.mark.parametrize(
    "code",
    [
        jump(ALIAS + 0x8400).ljust(0x400, b"\x90") + load("rbx", ALIAS + 0x8000),
        b"\xbe" + (ALIAS + 0x3000).to_bytes(4, "little") + bytes.fromhex("bf00310000 a4"),
    ],
    ids=["code", "data"],
)
def test_an_instruction_that_needs_a_page_both_ways_is_told(kind: str, code: bytes) -> None:
    """It would never end: mov esi, page without the C-bit; mov edi, the same page with it; movsb."""
    board = long_mode(code + HLT, kind)
    board.work()
    assert board.results == [(0, 17)]


@pytest.mark.parametrize(
    "code",
    ["be00002000 b9f0010000 8a06 81c600100000 ffc9 75f4", "be00002000 b900001f00 f3ac"],
    ids=["loop", "rep"],
)
def test_a_loop_over_many_pages_ends(code: str) -> None:
    """Each page comes at one instruction. mov esi, SHARED; mov ecx, 496; again: mov al, [rsi]; add esi, 4096;

    dec ecx; jnz again. Or mov ecx, 496 pages; rep lodsb.
    """
    board = long_mode(bytes.fromhex(code) + SEVEN + HLT)
    board.work()
    assert not board.results
    assert board.guest(0x1000, 1) == 7


def test_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is recognised by what it is made of and how often it is called, or is not changed."""
    monkeypatch.setattr(engine, "change", walks.change.__wrapped__)
    with pytest.raises(EngineUnavailable, match="its page walk was not found"):  # it is changed already
        Engine()
