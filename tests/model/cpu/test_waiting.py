# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends HLT and AP reset hold: an interrupt that the vCPU takes does, kvm_vcpu_has_events()."""

from __future__ import annotations

import pytest

from pytest_seves.model.cpu import lapic
from pytest_seves.model.cpu.processor import Activity
from pytest_seves.spec import ghcb
from tests.model.cpu.board import Board, long_mode
from tests.model.cpu.test_guests import ASK, COUNT, ask, event, field, machine_of, sipi
from tests.model.cpu.test_irqchip import initialised

MASKED, ENABLED = 0x2, 0x202  # RFLAGS
VECTOR = 0x61
#: test edi, edi; jnz +4; pause; jmp $-2: vCPU 0 has its turns, so that the other is not on the engine
FIRST_SPINS = bytes.fromhex("85ff 7504 f390 ebfc")


def interrupt(board: Board, number: int, source: str) -> None:
    """One arrives at a vCPU's local APIC, or at the PICs, whose interrupts it accepts."""
    machine = machine_of(board)
    apic = machine.processors[number].lapic
    apic.write(lapic.SVR, 0x1FF, 0)
    if source == "apic":
        assert apic.accept(VECTOR)
        return
    for other in machine.processors.values():
        other.lapic.write(lapic.LVT_LINT0, 0x700 if other.vcpu.identifier == number else 0x10700, 0)
    board.vm._irqchip = True
    board.vm.irqchip.pics = initialised()
    board.vm.irqchip.pics.set_line(VECTOR & 7, True)


@pytest.mark.parametrize("source", ["apic", "pic"])
@pytest.mark.parametrize(("flags", "woken"), [(MASKED, False), (ENABLED, True)])
def test_reset_hold_goes_on_while_interrupts_are_masked(source: str, flags: int, woken: bool) -> None:
    """OVMF holds its APs so when it exits boot services, with a tick of their APIC timers pending.

    Who came back early would run code that is not there yet. An interrupt that is taken ends the hold without
    an answer: SW_EXITINFO2 stays 0. A SIPI answers 1.
    """
    handlers = {VECTOR: COUNT, 0x21: COUNT}
    prepare = ask(event(ghcb.AP_RESET_HOLD))
    board = long_mode(FIRST_SPINS + ASK, vcpus=2, flags=flags, handlers=handlers, prepare=prepare)
    sipi(board, 1)
    board.work(turns=20)
    second = machine_of(board).processors[1]
    assert second.activity is Activity.RESET_HOLD
    before = board.guest(0x1000)
    interrupt(board, 1, source)
    board.work(turns=20)
    assert second.activity is (Activity.HALTED if woken else Activity.RESET_HOLD)
    assert board.guest(0x1000) == before + woken
    assert field(board, ghcb.SW_EXITINFO2) == 0
    if not woken:
        sipi(board, 1)
        board.work(turns=20)
        assert (second.activity, field(board, ghcb.SW_EXITINFO2)) == (Activity.HALTED, 1)


@pytest.mark.parametrize("kind", ["es", "plain"])
@pytest.mark.parametrize(("flags", "woken"), [(MASKED, False), (ENABLED, True)])
def test_halted_vcpu_waits_while_interrupts_are_masked(kind: str, flags: int, woken: bool) -> None:
    """hlt; inc qword [0x1008]; cli; hlt."""
    code = bytes.fromhex("f4 48ff042508100000 fa f4")
    board = long_mode(code, kind, flags=flags, handlers={VECTOR: COUNT})
    board.work()
    taken, passed = board.guest(0x1000), board.guest(0x1008)
    interrupt(board, 0, "apic")
    board.work()
    assert (board.guest(0x1000) - taken, board.guest(0x1008) - passed) == (woken, woken)


@pytest.mark.parametrize(("flags", "woken"), [(MASKED, False), (ENABLED, True)])
def test_vcpu_that_the_vmm_halts_before_it_runs(flags: int, woken: bool) -> None:
    """KVM_SET_MP_STATE: KVM's registers say whether it takes interrupts."""
    board = long_mode(b"", "plain", flags=flags)
    processor = machine_of(board).processors[0]
    processor.set_activity(Activity.HALTED.value)
    interrupt(board, 0, "apic")
    assert processor.accept_events() is woken
