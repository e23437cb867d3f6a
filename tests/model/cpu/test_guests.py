# SPDX-License-Identifier: GPL-2.0-or-later
"""Small guests of each kind on the engine: what the CPU and KVM do for them.

Machine code is spelled out, its assembly beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pytest_seves.model.cpu import exits, trace
from pytest_seves.model.cpu.machine import Machine
from pytest_seves.model.cpu.processor import Activity
from pytest_seves.spec import ghcb, kvm
from tests.model.cpu.board import ALIAS, HOST, SHARED, Board, long_mode, start_at

HLT = bytes.fromhex("f4")
CPUID = bytes.fromhex("0fa2")
VMGEXIT = bytes.fromhex("f30f01d9")
#: pop [0x1000]; add qword [rsp], 2; iretq: keeps the error code, skips a two-byte instruction
KEEP_ERROR_AND_SKIP = bytes.fromhex("8f042500100000 4883042402 48cf")
#: inc qword [0x1000]; iretq
COUNT = bytes.fromhex("48ff042500100000 48cf")
GHCB = SHARED + 0x100000
VC = 29


def machine_of(board: Board) -> Machine:
    """The board's machine."""
    assert board.vm.machine is not None
    return board.vm.machine


def move(register: str, value: int) -> bytes:
    """mov r32, value."""
    return bytes([0xB8 + ("eax", "ecx", "edx", "ebx").index(register)]) + value.to_bytes(4, "little")


def write_msr(number: int, value: int) -> bytes:
    """mov ecx, number; mov eax, low; mov edx, high; wrmsr."""
    return (
        move("ecx", number)
        + move("eax", value & 0xFFFFFFFF)
        + move("edx", value >> 32)
        + bytes.fromhex("0f30")
    )


#: mov ecx, GHCB MSR; rdmsr; mov [0x1008], eax; mov [0x100c], edx
READ_GHCB_MSR = (
    move("ecx", ghcb.GHCB_MSR) + bytes.fromhex("0f32") + bytes.fromhex("89042508100000 8914250c100000")
)


# Starting


def test_reset_vector_has_its_hidden_base() -> None:
    """F000:FFF0 is at 4 GiB less 16: mov al, cs:[0xfff5]; out 0x80, al; hlt."""
    board = Board(bytes.fromhex("2ea0f5ff e680 f4"))
    board.work()
    assert board.ports == [(0x80, b"\x80")]  # the byte at FFF5 is the OUT's port


#: Real mode to protected to long mode at the reset vector's ROM, then a character: bits 16: lgdt cs:[0x1a0];
#: mov eax, cr0; or al, 1; mov cr0, eax; jmp far 8:0xffff0020. bits 32: mov ax, 0x10; mov ds, es, ss;
#: mov eax, cr4; or eax, 0x20; mov cr4, eax; page tables at 0x10000 by hand; mov cr3; wrmsr EFER.LME;
#: mov cr0 with PG; jmp far 0x18:0xffff00a0. bits 64: mov dx, 0x3f8; mov al, "L"; out dx, al; hlt
REAL = bytes.fromhex("662e0f0116a001 0f20c0 0c01 0f22c0 66ea2000ffff0800")
PROTECTED = bytes.fromhex(
    "66b81000 8ed8 8ec0 8ed0 0f20e0 83c820 0f22e0"
    "c7050000010003100100 c7050010010003200100 c7051810010003300100"
    "c7050020010083000000 c705f83f01008300e0ff"
    "b800000100 0f22d8 b9800000c0 b800010000 31d2 0f30"
    "0f20c0 0d00000080 0f22c0 eaa000ffff1800"
)
LONG = bytes.fromhex("66baf803 b04c ee f4")
DESCRIPTORS = bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00 ffff0000009baf00")


def test_real_mode_to_protected_to_long_mode() -> None:
    """A guest switches modes as firmware does, and speaks at the end."""
    rom = bytearray(0x10000)
    rom[0xFFF0:0xFFF3] = b"\xe9" + (-0xFFF3 & 0xFFFF).to_bytes(2, "little")  # jmp 0
    for at, data in ((0, REAL), (0x20, PROTECTED), (0xA0, LONG), (0x180, DESCRIPTORS)):
        rom[at : at + len(data)] = data
    rom[0x1A0:0x1A6] = (31).to_bytes(2, "little") + (0xFFFF0180).to_bytes(4, "little")
    board = Board(bytes(rom), at=0)
    board.work()
    assert board.ports == [(0x3F8, b"L")]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["es", "plain"])
def test_real_mode_returns_by_the_stack_of_protected_mode(kind: str, size: int) -> None:
    """SS keeps its 32-bit stack when protected mode ends, and IRET of either size pops above 64 KiB.

    lgdt cs:[0x8060]; mov eax, cr0; or al, 1; mov cr0, eax; mov bx, 16; mov ss, bx; mov esp, 0x20000; push
    0xad7, 0x900 and 0x34; and al, 0xfe; mov cr0, eax; iret. At 0900:0034: pushf; pop ax; mov cs:[0x100], ax;
    mov cs:[0x104], esp; mov cs:[0x108], cs; int 0x40; hlt. At 0900:0070, its handler:
    mov cs:[0x10c], esp; iret
    """
    prefix = b"\x66" if size == 4 else b""
    code = bytes.fromhex("662e0f01166080 0f20c0 0c01 0f22c0 bb1000 8ed3 66bc00000200")
    code += b"".join(prefix + b"\x68" + value.to_bytes(size, "little") for value in (0xAD7, 0x900, 0x34))
    code += bytes.fromhex("24fe 0f22c0") + prefix + b"\xcf"
    gdtr = (31).to_bytes(2, "little") + (0xFFFF8070).to_bytes(4, "little")
    code = code.ljust(0x60, b"\x90") + gdtr.ljust(16, b"\0") + DESCRIPTORS
    board = Board(code, kind, at=0x8000, registers=start_at(0x8000))
    target = bytes(0x34) + bytes.fromhex("9c58 2ea30001 662e89260401 2e8c0e0801 cd40 f4")
    board.put(0x9000, target.ljust(0x70, b"\x90") + bytes.fromhex("662e89260c01 cf"))
    board.put(0, bytes(0x100) + bytes.fromhex("70000009"))
    board.work()
    seen = [board.guest(at, 4) for at in (0x9100, 0x9104, 0x9108, 0x910C)]
    assert seen == [0xAD7, 0x20000, 0x900, 0x1FFFA]
    assert machine_of(board).processors[0].activity is Activity.HALTED
    assert machine_of(board).engine.state.regs[4] == 0x20000


@pytest.mark.parametrize("kind", ["es", "sev", "plain"])
def test_registers_come_from_where_the_kind_has_them(kind: str) -> None:
    """The save area, or KVM's registers: lea rax, [rdi + 1]; mov [0x1000], rax; hlt."""
    board = long_mode(bytes.fromhex("488d4701 4889042500100000 f4"), kind)
    regs = kvm.REGS.decode(board.vcpus[0].regs)
    board.vcpus[0].regs = kvm.REGS.encode(**{**regs, "rdi": 7})  # too late for a protected one
    board.work()
    assert board.guest(0x1000) == (1 if kind == "es" else 8)


@pytest.mark.parametrize(
    ("features", "value", "seen"),
    [(1 << 12, 1, 7), (0, 1, 13), (1 << 12, 2, 13)],
    ids=["has", "lacks", "bits"],
)
def test_branch_prediction_barrier(features: int, value: int, seen: int) -> None:
    """IA32_PRED_CMD is there for a guest with IBPB: mov byte [0x1000], 7; hlt. #GP: 13 instead."""
    code = write_msr(0x49, value) + bytes.fromhex("c604250010000007") + HLT
    board = long_mode(code, "plain", handlers={13: bytes.fromhex("c60425001000000d") + HLT})
    entry = struct.pack("<10I", 0x80000008, 0, 0, 40, features, 0, 0, 0, 0, 0)
    board.vcpus[0].cpuid = struct.pack("<2I", 1, 0) + entry
    board.work()
    assert board.guest(0x1000, 1, private=False) == seen


# #VC and VMGEXIT


@pytest.mark.parametrize(
    ("code", "name"),
    [("0fa2", 0x72), ("0f32", 0x7C), ("0f08", 0x76), ("0f09", 0x89), ("0f33", 0x6F)],
    ids=["cpuid", "rdmsr", "invd", "wbinvd", "rdpmc"],
)
def test_intercepts_are_vc_in_an_es_guest(code: str, name: int) -> None:
    """A non-automatic exit gives #VC with the exit code as error code, and IRETQ returns."""
    board = long_mode(bytes.fromhex(code) + HLT, handlers={VC: KEEP_ERROR_AND_SKIP})
    board.work()
    assert board.guest(0x1000) == name
    assert machine_of(board).processors[0].activity is Activity.HALTED


@pytest.mark.parametrize("code", ["e480", "e680"], ids=["in", "out"])
def test_ports_are_vc_in_an_es_guest(code: str) -> None:
    """IN and OUT have not happened when #VC comes, and RAX is as it was."""
    keep = move("eax", 0x11223344) + bytes.fromhex(code) + bytes.fromhex("89042508100000") + HLT
    board = long_mode(keep, handlers={VC: KEEP_ERROR_AND_SKIP})
    board.work()
    assert board.guest(0x1000) == 0x7B
    assert board.guest(0x1008, 4) == 0x11223344
    assert board.ports == []


@pytest.mark.parametrize("kind", ["sev", "plain"])
def test_other_guests_have_instructions_emulated(kind: str) -> None:
    """CPUID and ports need no help of the guest: cpuid; in al, 0x80; mov [0x1000], al; out 0x81, al; hlt."""
    board = long_mode(CPUID + bytes.fromhex("e480 880425001000 00 e681 f4"), kind)
    board.answers[0x80] = 0x5A
    board.work()
    assert board.guest(0x1000, 1) == 0x5A
    assert board.ports == [(0x81, b"\x5a")]


def test_string_output_reaches_the_vmm_whole() -> None:
    """rep outsb: one exit with all of it: lea rsi, [msg]; mov ecx, 5; mov edx, 0x3f8; rep outsb; hlt; msg."""
    code = (
        bytes.fromhex("488d3510000000")
        + move("ecx", 5)
        + move("edx", 0x3F8)
        + bytes.fromhex("f36e f490 9090")
    )
    board = long_mode(code + bytes(23 - len(code)) + b"hello", "plain")
    board.work()
    assert board.ports == [(0x3F8, b"hello")]


def test_ghcb_msr_protocol() -> None:
    """SEV information as the request's answer: wrmsr 2; vmgexit; rdmsr."""
    board = long_mode(write_msr(ghcb.GHCB_MSR, 2) + VMGEXIT + READ_GHCB_MSR + HLT)
    board.work()
    assert board.guest(0x1008) == ghcb.sev_info(2, 1, 39)


def test_vmgexit_in_real_mode() -> None:
    """mov ecx, GHCB MSR; mov eax, 2; xor edx, edx; wrmsr; vmgexit; rdmsr; mov [0x1000], eax; hlt."""
    code = bytes.fromhex("66b9300101c0 66b802000000 6631d2 0f30 f30f01d9 0f32 66a30010 f4")
    board = Board(code, "es", at=0x8000, registers=start_at(0x8000))
    board.work()
    assert board.guest(0x1000, 4) == ghcb.sev_info(2, 1, 39) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("profile", "request_", "answer"),
    [
        ("linux-6.12", 0x080, 0x3081),
        ("linux-6.1", 0x080, 0x080),
        ("linux-6.12", 0x345, 0x345),
    ],
)
def test_unknown_requests_keep_their_value(profile: str, request_: int, answer: int) -> None:
    """What a kernel does not know stays as the guest wrote it."""
    code = write_msr(ghcb.GHCB_MSR, request_) + VMGEXIT + READ_GHCB_MSR + HLT
    board = long_mode(code, profile=profile)
    board.work()
    assert board.guest(0x1008) == answer


def ask(fields: dict[int, int], *, valid: bool = True, usage: int = 0) -> Callable[[Board], None]:
    """Put a request into the shared GHCB page."""

    def prepare(board: Board) -> None:
        page = bytearray(0x1000)
        for at, value in fields.items():
            page[at : at + 8] = value.to_bytes(8, "little")
            if valid:
                page[ghcb.VALID_BITMAP + at // 64] |= 1 << at // 8 % 8
        page[ghcb.GHCB_USAGE : ghcb.GHCB_USAGE + 4] = usage.to_bytes(4, "little")
        board.memory.ram[GHCB : GHCB + 0x1000] = page

    return prepare


def event(code: int, one: int = 0, two: int = 0, **more: int) -> dict[int, int]:
    """Fields of a request."""
    fields = {ghcb.SW_EXITCODE: code, ghcb.SW_EXITINFO1: one, ghcb.SW_EXITINFO2: two}
    return {**fields, **{getattr(ghcb, name.upper()): value for name, value in more.items()}}


ASK = write_msr(ghcb.GHCB_MSR, GHCB) + VMGEXIT + HLT


def field(board: Board, at: int) -> int:
    """A field of the GHCB as the host sees it."""
    machine_of(board).memory.push()
    return int.from_bytes(board.memory.ram[GHCB + at : GHCB + at + 8], "little")


def test_port_write_by_the_shared_page() -> None:
    """NAE IOIO: the VMM gets the byte, the guest a clean answer, KVM_GET_REGS the exchanged registers."""
    board = long_mode(ASK, prepare=ask(event(0x7B, 0x3F8 << 16 | 1 << 4, rax=ord("A"))))
    board.work()
    assert board.ports == [(0x3F8, b"A")]
    assert (field(board, ghcb.SW_EXITINFO1), field(board, ghcb.SW_EXITINFO2)) == (0, 0)
    assert int.from_bytes(board.vcpus[0].regs[:8], "little") == ord("A")
    assert int.from_bytes(board.vcpus[0].regs[128:136], "little") == 0  # RIP


def test_memory_mapped_read_by_the_shared_page() -> None:
    """NAE MMIO read goes into the scratch area."""
    request = event(ghcb.MMIO_READ, 0xFED00000, 4, sw_scratch=GHCB + ghcb.SHARED_BUFFER)
    board = long_mode(ASK, prepare=ask(request))
    board.answers[0xFED00000] = 0xCAFE
    board.work()
    assert field(board, ghcb.SHARED_BUFFER) == 0xCAFE


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (ask(event(0x7B), usage=1), ghcb.ERROR_INVALID_USAGE),
        (ask(event(0x7B), valid=False), ghcb.ERROR_MISSING_INPUT),
        (ask(event(0x72)), ghcb.ERROR_MISSING_INPUT),
        (ask(event(0x1234)), ghcb.ERROR_INVALID_EVENT),
        (ask(event(ghcb.AP_JUMP_TABLE, 7)), ghcb.ERROR_INVALID_INPUT),
        (ask(event(ghcb.MMIO_READ, 0xFED00000, 4, sw_scratch=GHCB + 8)), ghcb.ERROR_INVALID_SCRATCH),
        (ask(event(ghcb.AP_CREATION)), ghcb.ERROR_MISSING_INPUT),
    ],
    ids=["usage", "not valid", "no registers", "unknown", "jump table", "scratch", "SNP only"],
)
def test_malformed_requests_are_answered_so(prepare: Callable[[Board], None], reason: int) -> None:
    """SW_EXITINFO1 2, and the reason; the guest goes on."""
    board = long_mode(ASK, prepare=prepare)
    board.work()
    assert (field(board, ghcb.SW_EXITINFO1), field(board, ghcb.SW_EXITINFO2)) == (2, reason)
    assert machine_of(board).processors[0].activity is Activity.HALTED


def test_unknown_msr_is_an_exception_to_inject() -> None:
    """NAE MSR of a register that KVM does not know: #GP by way of SW_EXITINFO."""
    board = long_mode(ASK, prepare=ask(event(0x7C, 0, rcx=0x12345)))
    board.work()
    assert (field(board, ghcb.SW_EXITINFO1), field(board, ghcb.SW_EXITINFO2)) == (1, 0x8000030D)


def test_jump_table_is_kept() -> None:
    """Set, then get."""
    board = long_mode(ASK, prepare=ask(event(ghcb.AP_JUMP_TABLE, 0, 0x5000)))
    board.work()
    assert machine_of(board).ap_jump_table == 0x5000


@pytest.mark.parametrize(
    ("setting", "result"), [("linux-6.1", (0, 24)), ("linux-6.1:sev_term_event=N", (-22, 0))]
)
def test_termination_reaches_the_vmm(setting: str, result: tuple[int, int]) -> None:
    """KVM_EXIT_SYSTEM_EVENT, or EINVAL as before 5.19."""
    board = long_mode(write_msr(ghcb.GHCB_MSR, 0x0AB1100) + VMGEXIT + HLT, profile=setting)
    board.work()
    assert board.results[0][0] == result[0]
    if result[0] == 0:
        run = board.vcpus[0].run
        assert board.results[0][1] == result[1]
        assert int.from_bytes(run[32:36], "little") == 6
        assert int.from_bytes(run[40:48], "little") == 0x0AB1100


@pytest.mark.parametrize(
    ("kind", "profile", "result"),
    [("es", "linux-6.1", (-22, 8)), ("es", "linux-6.12", (0, 8)), ("plain", "linux-6.1", (0, 8))],
)
def test_triple_fault(kind: str, profile: str, result: tuple[int, int]) -> None:
    """An IDT without handlers: EINVAL or KVM_EXIT_SHUTDOWN, and again when KVM_RUN is tried again."""
    board = long_mode(bytes.fromhex("0f0b"), kind, profile=profile)
    board.work()
    board.enter(board.vcpus[0])
    board.work()
    assert board.results == [result, result]


def test_code_where_no_memory_is_fails_to_be_emulated() -> None:
    """KVM_EXIT_INTERNAL_ERROR, suberror emulation: mov eax, 0x3000000; jmp rax."""
    board = long_mode(move("eax", 0x3000000) + bytes.fromhex("ffe0"), "plain")
    board.work()
    assert board.results == [(0, 17)]
    assert int.from_bytes(board.vcpus[0].run[32:36], "little") == 1
    assert machine_of(board).trace.notes == ["vCPU 0: code at 0x3000000, where no memory is"]


# Memory


def test_private_memory_is_ciphertext_to_the_host() -> None:
    """The guest's canary is nowhere in the VMM's memory, and the page there is no zeros either."""
    board = long_mode(move("eax", 0x0DDBA11) + bytes.fromhex("89042500100000 f4"))
    board.work()
    assert board.guest(0x1000, 4) == 0x0DDBA11
    assert (0x0DDBA11).to_bytes(4, "little") not in board.memory.ram
    assert board.memory.ram[0x1000:0x2000] != bytes(0x1000)


def test_private_page_reads_as_ciphertext_without_the_c_bit() -> None:
    """The same page by both mappings: mov [0x1000], eax; mov ebx, [ALIAS + 0x1000]; mov [SHARED], ebx."""
    code = move("eax", 0x0DDBA11) + bytes.fromhex("89042500100000")
    code += b"\x8b\x1c\x25" + (ALIAS + 0x1000).to_bytes(4, "little")
    code += b"\x89\x1c\x25" + SHARED.to_bytes(4, "little") + HLT
    board = long_mode(code)
    board.work()
    machine_of(board).memory.push()
    seen = bytes(board.memory.ram[SHARED : SHARED + 4])
    assert seen == bytes(board.memory.ram[0x1000:0x1004])
    assert seen != (0x0DDBA11).to_bytes(4, "little")
    assert board.guest(0x1000, 4) == 0x0DDBA11  # back through the C-bit it is what it was


def test_shared_memory_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What either side writes beside the other's is kept: add dword [SHARED], 1; out 0x80, al; twice; hlt."""
    once = b"\x83\x04\x25" + SHARED.to_bytes(4, "little") + b"\x01" + bytes.fromhex("e680")
    board = long_mode(once + once + HLT, "sev")
    board.memory.ram[SHARED : SHARED + 4] = (41).to_bytes(4, "little")
    answer = board._answer

    def host_writes_too(identifier: int, result: int) -> None:
        board.memory.ram[SHARED + 64 : SHARED + 68] = b"host"
        answer(identifier, result)

    monkeypatch.setattr(board.vm.supervisor, "answer", host_writes_too)
    board.work()
    machine_of(board).memory.push()
    assert board.memory.ram[SHARED : SHARED + 4] == (43).to_bytes(4, "little")
    assert board.memory.ram[SHARED + 64 : SHARED + 68] == b"host"
    assert board.guest(SHARED + 64, 4, private=False) == int.from_bytes(b"host", "little")


def test_memory_mapped_access_of_a_plain_guest() -> None:
    """The engine decodes it: mov eax, [0x3000000]; mov [0x3000004], eax; hlt."""
    board = long_mode(bytes.fromhex("8b042500000003 89042504000003 f4"), "plain")
    board.answers[0x3000000] = 0xBEEF
    board.work()
    assert board.mmio == [(0x3000004, (0xBEEF).to_bytes(4, "little"))]


def test_memory_mapped_access_above_4_gib() -> None:
    """Where firmware puts 64-bit BARs the whole address counts: read one page, write it and another; hlt."""

    def prepare(board: Board) -> None:  # 2 MiB at 0xC800000 and at 0xCA00000
        entries = (0x8_0000_0087).to_bytes(8, "little") + (0xE0_0020_0087).to_bytes(8, "little")
        board.memory.ram[0x12320:0x12330] = entries

    code = bytes.fromhex("8b04250800800c 8904250c00800c 8904251000a00c f4")
    board = long_mode(code, "plain", prepare=prepare)
    board.answers[0x8_0000_0008] = 0xBEEF
    board.work()
    data = (0xBEEF).to_bytes(4, "little")
    assert board.mmio == [(0x8_0000_000C, data), (0xE0_0020_0010, data)]


@pytest.mark.parametrize("size", [0x2000, 0x200000], ids=["pages", "large"])
@pytest.mark.parametrize("kind", ["sev", "plain"])
def test_slots_come_and_go_while_the_guest_executes(
    monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    """What was no memory is, and is not again.

    Three times mov eax, [0x601008]; out 0x80, al; inc dword [0x1000]. Then hlt.
    """
    one = bytes.fromhex("8b042508106000 e680 ff042500100000")
    board = long_mode(one * 3 + HLT, kind, prepare=lambda board: board.put(0x1000, bytes(4)))
    board.answers[0x601008] = 0x11
    board.memory.ram[0x201008] = 0x22
    answer = board._answer

    def change_slots(identifier: int, result: int) -> None:
        at_port = isinstance(machine_of(board).processors[0].asked, exits.PortIo)
        if at_port and board.vm.slots.pop(2, None) is None:
            board.vm.slots[2] = (0x600000, size, HOST + SHARED, 0)
        answer(identifier, result)

    monkeypatch.setattr(board.vm.supervisor, "answer", change_slots)
    board.work()
    assert board.ports == [(0x80, b"\x11"), (0x80, b"\x22"), (0x80, b"\x11")]
    assert board.guest(0x1000, 4) == 3


# Exceptions and interrupts


def test_exception_at_user_level_changes_the_stack() -> None:
    """#UD at CPL 3 runs its handler on RSP0 at CPL 0: mov [0x1000], rsp; mov [0x1008], cs; hlt."""
    handler = bytes.fromhex("4889242500100000 8c0c2508100000 f4")
    board = long_mode(bytes.fromhex("0f0b"), "plain", handlers={6: handler}, user=True)
    board.work()
    assert board.guest(0x1000) == 0x7000 - 5 * 8
    assert board.guest(0x1008, 2) == 0x08


def test_page_fault_tells_its_address() -> None:
    """mov eax, [0x40000000]; the handler keeps error code and CR2: pop; mov rax, cr2; mov [0x1008], rax."""
    handler = bytes.fromhex("8f042500100000 0f20d0 4889042508100000 f4")
    board = long_mode(bytes.fromhex("8b042500000040"), "plain", handlers={14: handler})
    board.work()
    assert (board.guest(0x1000), board.guest(0x1008)) == (0, 0x40000000)


@pytest.mark.parametrize(("code", "vector"), [("cd40", 0x40), ("cc", 3)])
def test_software_interrupts_return_behind_themselves(code: str, vector: int) -> None:
    """INT n and INT3: the handler counts, IRETQ goes on to the HLT."""
    board = long_mode(bytes.fromhex(code) + HLT, "plain", handlers={vector: COUNT})
    board.work()
    assert board.guest(0x1000) == 1
    assert machine_of(board).processors[0].activity is Activity.HALTED


#: To CPL 3 by SYSRET with RFLAGS 0x602: mov ecx, 0x8100; mov r11d, 0x602; sysretq
TO_USER = bytes.fromhex("b900810000 41bb02060000 480f07")
#: mov [0x1000], rcx; mov [0x1008], r11; mov [0x1010], cs; mov [0x1018], ss; pushfq; pop [0x1020];
#: mov rax, cr0
SYSTEM_CALL = bytes.fromhex(
    "48890c2500100000 4c891c2508100000 8c0c2510100000 8c142518100000 9c 8f042520100000 0f20c0"
)


@pytest.mark.parametrize("kind", ["es", "sev", "plain"])
def test_system_call(kind: str) -> None:
    """SYSCALL comes from CPL 3 to a handler that may do what CPL 0 may, with IF and DF masked."""
    star = 0x10 << 48 | 0x08 << 32
    code = write_msr(0xC0000081, star) + write_msr(0xC0000082, 0x8200) + write_msr(0xC0000084, 0x600)
    code += write_msr(0xC0000080, 0xD01) + TO_USER
    board = long_mode(code.ljust(0x100, b"\x90") + bytes.fromhex("0f05"), kind)
    board.put(0x8200, SYSTEM_CALL + HLT)
    board.work()
    assert [board.guest(at) for at in (0x1000, 0x1008, 0x1020)] == [0x8102, 0x602, 0x2]
    assert [board.guest(at, 2) for at in (0x1010, 0x1018)] == [0x08, 0x10]
    assert machine_of(board).processors[0].activity is Activity.HALTED


def test_system_call_that_is_not_enabled() -> None:
    """Without EFER.SCE it is #UD, and RIP is its own: mov rax, [rsp]; mov [0x1000], rax; hlt."""
    handler = bytes.fromhex("488b0424 4889042500100000 f4")
    board = long_mode(bytes.fromhex("90 0f05"), "plain", handlers={6: handler})
    board.work()
    assert board.guest(0x1000) == 0x8001


def test_error_code_of_a_general_protection_fault() -> None:
    """A selector beyond the GDT: mov eax, 0x4000; mov ds, eax; hlt."""
    code = move("eax", 0x4000) + bytes.fromhex("8ed8 f4")
    board = long_mode(code, "plain", handlers={13: KEEP_ERROR_AND_SKIP})
    board.work()
    assert board.guest(0x1000) == 0x4000


APIC_ON = write_msr(0x1B, 0xFEE00D00) + write_msr(0x80F, 0x1FF)
ONE_SHOT = write_msr(0x832, 0x40) + write_msr(0x838, 100)


def test_timer_interrupts_a_guest_that_never_exits() -> None:
    """sti; jmp $: the interrupt comes at a block's boundary, and the handler halts."""
    halt = bytes.fromhex("48ff042500100000 f4")
    board = long_mode(APIC_ON + ONE_SHOT + bytes.fromhex("fb ebfe"), "plain", handlers={0x40: halt})
    board.work()
    assert board.guest(0x1000) == 1


def test_interrupt_waits_for_its_window() -> None:
    """Every exit is with IF clear, the interrupt comes in between.

    again: cli; cpuid; sti; nop; nop; cmp qword [0x1000], 0; je again; cli; hlt
    """
    loop = bytes.fromhex("fa 0fa2 fb 90 90 48833c250010000000 74ef fa f4")
    board = long_mode(APIC_ON + ONE_SHOT + loop, "plain", handlers={0x40: COUNT})
    board.work()
    assert board.guest(0x1000) == 1
    assert machine_of(board).processors[0].activity is Activity.HALTED


def test_halted_vcpu_wakes_by_its_timer() -> None:
    """Guest time jumps to the deadline: sti; hlt; mov byte [0x1008], 1; cli; hlt."""
    code = APIC_ON + write_msr(0x832, 0x40) + write_msr(0x838, 1_000_000)
    board = long_mode(code + bytes.fromhex("fb f4 c604250810000001 fa f4"), "plain", handlers={0x40: COUNT})
    board.work(turns=100_000)
    assert (board.guest(0x1000), board.guest(0x1008, 1)) == (1, 1)


# Application processors


def sipi(board: Board, number: int) -> None:
    """INIT and SIPI, with a vector that no SEV-ES guest must see."""
    processor = machine_of(board).processors[number]
    processor.receive_init()
    processor.accept_events()
    processor.receive_sipi(0x20)


#: test edi, edi; jnz +1; hlt: only vCPU 1 goes on
ONLY_SECOND = bytes.fromhex("85ff 7501 f4")


def test_first_sipi_starts_an_es_vcpu_from_its_save_area() -> None:
    """As measured, whatever the vector; inc qword [0x1000]; hlt."""
    board = long_mode(ONLY_SECOND + bytes.fromhex("48ff042500100000 f4"), vcpus=2)
    board.work()
    assert board.guest(0x1000) != 1  # it waits
    before = board.guest(0x1000)
    sipi(board, 1)
    board.work()
    assert board.guest(0x1000) == before + 1


def test_later_sipi_ends_a_reset_hold_of_the_msr_protocol() -> None:
    """The answer's data field is not 0."""
    code = ONLY_SECOND + write_msr(ghcb.GHCB_MSR, 6) + VMGEXIT + READ_GHCB_MSR + HLT
    board = long_mode(code, vcpus=2)
    sipi(board, 1)
    board.work()
    assert machine_of(board).processors[1].activity is Activity.RESET_HOLD
    sipi(board, 1)
    board.work()
    assert board.guest(0x1008) == 0x1007


def test_interrupt_ends_a_reset_hold_without_an_answer() -> None:
    """SIPI without INIT: the guest comes back, and SW_EXITINFO2 stays 0."""
    board = long_mode(ONLY_SECOND + ASK, vcpus=2, prepare=ask(event(ghcb.AP_RESET_HOLD)))
    sipi(board, 1)
    board.work()
    machine_of(board).processors[1].receive_sipi(0x20)
    board.work()
    assert machine_of(board).processors[1].activity is Activity.HALTED
    assert field(board, ghcb.SW_EXITINFO2) == 0


def test_later_sipi_ends_a_reset_hold_of_the_shared_page() -> None:
    """SW_EXITINFO2 is 1."""
    board = long_mode(ONLY_SECOND + ASK, vcpus=2, prepare=ask(event(ghcb.AP_RESET_HOLD)))
    sipi(board, 1)
    board.work()
    assert field(board, ghcb.SW_EXITINFO2) == 0
    sipi(board, 1)
    board.work()
    assert field(board, ghcb.SW_EXITINFO2) == 1
    assert machine_of(board).processors[1].activity is Activity.HALTED


def test_plain_vcpu_starts_at_the_vector() -> None:
    """By the xAPIC page, INIT and SIPI to all others.

    mov dword [0xfee00300], ..., twice; hlt. At the vector, 0x30: mov byte cs:[0x100], 7; hlt
    """

    def prepare(board: Board) -> None:
        board.put(0x30000, bytes.fromhex("2ec606000107 f4"))

    # mov ebx, 0xfee00300; mov dword [rbx], ...
    code = move("ebx", 0xFEE00300) + bytes.fromhex("c70300450c00 c70330460c00 f4")
    board = long_mode(code, "plain", vcpus=2, prepare=prepare)
    board.work()
    assert board.guest(0x30100, 1) == 7


def test_init_takes_a_plain_vcpu_back_to_real_mode() -> None:
    """Twice: mov eax, cr0; or al, 1; mov cr0, eax; inc byte cs:[0x100]; hlt."""
    code = bytes.fromhex("0f20c0 0c01 0f22c0 2efe060001 f4")
    board = long_mode(ONLY_SECOND, "plain", vcpus=2, prepare=lambda board: board.put(0x20000, code))
    for count in (1, 2):
        sipi(board, 1)
        board.work()
        assert board.guest(0x20100, 1) == count
        assert int.from_bytes(board.vcpus[1].sregs[224:232], "little") & 1


# Repeatability


@pytest.mark.parametrize("kind", ["es", "plain"])
def test_the_same_guest_has_the_same_trace(kind: str) -> None:
    """Two vCPUs that spin and exit, twice: the same hash, the same guest time, the same exits."""
    # mov ecx, 300; again: pause; rdtsc; loop again; hlt
    code = move("ecx", 300) + bytes.fromhex("f390 0f31 e2fa f4")
    seen = []
    for _ in range(2):
        board = long_mode(code, kind, vcpus=2)
        machine_of(board).processors[1].activity = Activity.RUNNABLE
        board.work(turns=5000)
        machine = machine_of(board)
        seen.append((machine.trace.hash, machine.now_ns, machine.trace.exits))
    assert seen[0] == seen[1]
    assert seen[0][2] > 1200


@pytest.mark.parametrize("kind", ["sev", "plain"])
def test_memory_that_has_to_come_changes_no_trace(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A fault that only the model sees takes no guest time, and lets no interrupt in before its time.

    mov esi, 50; sti; again: cpuid; mov ecx, 1000; loop $; inc dword [0x3000]; mov ecx, 1000; loop $; dec esi;
    jnz again; cli; no timer; hlt. The handler of a periodic timer counts, and ends its interrupt.
    """
    spin = move("ecx", 1000) + bytes.fromhex("e2fe")
    once = bytes.fromhex("0fa2") + spin + bytes.fromhex("ff042500300000") + spin + bytes.fromhex("ffce")
    code = APIC_ON + write_msr(0x832, 0x20040) + write_msr(0x838, 9000) + bytes.fromhex("be32000000 fb")
    code += once + bytes([0x75, -(len(once) + 2) & 0xFF]) + b"\xfa" + write_msr(0x838, 0) + HLT
    handler = bytes.fromhex("505152") + write_msr(0x80B, 0) + bytes.fromhex("5a5958") + COUNT

    def run(*, forgets: bool) -> tuple[int, int, int]:
        board = long_mode(
            code, kind, handlers={0x40: handler}, prepare=lambda board: board.put(0x1000, bytes(8))
        )
        machine = machine_of(board)
        noted = machine.trace.exit

        def note(vcpu: int, code: int, rip: int) -> None:
            noted(vcpu, code, rip)
            if forgets:
                machine.memory.paging.clear()

        monkeypatch.setattr(machine.trace, "exit", note)
        board.work()
        assert board.guest(0x1000) > 50
        return machine.trace.hash, machine.now_ns, machine.trace.exits

    assert run(forgets=True) == run(forgets=False)


def test_memory_that_comes_in_each_turn_anew_is_no_failure() -> None:
    """A guest that goes on in between does not need a page as two: inc dword [0x3000]; jmp $ - 7."""
    board = long_mode(bytes.fromhex("ff042500300000 ebf7"), "sev")
    for _ in range(150):
        board.work(1)
        machine_of(board).memory.paging.clear()
    assert machine_of(board).trace.notes == []
    assert board.vcpus[0].in_kvm_run


@pytest.mark.parametrize("chosen", [0x0A, 0x8A])
@pytest.mark.parametrize("updating", [True, False])
def test_runs_are_compared_until_the_rtc_is_updating(
    monkeypatch: pytest.MonkeyPatch, chosen: int, updating: bool
) -> None:
    """The VMM's RTC goes by the clock on the wall: what a guest does once register A has UIP is left out.

    Bit 7 of other registers, and of what is written to A, is not UIP: mov al, 0x0b; out 0x70, al;
    in al, 0x71; mov al, chosen; out 0x70, al; mov al, 0xa6; out 0x71, al; in al, 0x71; out 0x80, al; hlt.
    """
    monkeypatch.setattr(trace, "CHECKPOINT", 1)
    code = bytes.fromhex(f"b00b e670 e471 b0{chosen:02x} e670 b0a6 e671 e471 e680 f4")
    board = long_mode(code, "plain")
    board.answers[0x71] = 0xA6 if updating else 0x26
    board.work()
    machine = machine_of(board)
    account = machine.trace.summary(machine)
    checkpoints = account["checkpoints"]
    assert isinstance(checkpoints, list)
    assert board.ports[-1] == (0x80, bytes([board.answers[0x71]]))
    assert account["exits"] == 7
    assert (account["at_rtc_update"], len(checkpoints)) == ((5, 5) if updating else (None, 7))


@pytest.mark.parametrize("data", [b"data", bytes(4096)], ids=["other", "what-was-there"])
def test_what_the_vmm_has_written_into_a_page_outlives_its_ciphertext(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """A device writes into a page that was private and is to be shared: the late ciphertext must not undo it.

    Not even where it writes what the VMM's memory had before the guest used it.

    mov [0x1000], eax; out 0x80, al, where the VMM writes; mov ebx, [ALIAS + 0x1000]; mov [SHARED], ebx; hlt.
    """
    code = move("eax", 0x0DDBA11) + bytes.fromhex("89042500100000 e680")
    code += b"\x8b\x1c\x25" + (ALIAS + 0x1000).to_bytes(4, "little")
    code += b"\x89\x1c\x25" + SHARED.to_bytes(4, "little") + HLT
    board = long_mode(code, "sev")
    answer = board._answer

    def write_as_a_device(identifier: int, result: int) -> None:
        board.memory.ram[0x1000 : 0x1000 + len(data)] = data
        answer(identifier, result)

    monkeypatch.setattr(board.vm.supervisor, "answer", write_as_a_device)
    board.memory.ram[SHARED : SHARED + 4] = b"none"
    board.work()
    machine_of(board).memory.push()
    assert board.memory.ram[SHARED : SHARED + 4] == data[:4]
