# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine alone: its self-check, and that a stop never lets an instruction execute twice."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import unicorn

from pytest_seves.model.cpu import engine, layout, nested_paging
from pytest_seves.model.cpu.engine import Engine, EngineUnavailable
from tests.model.cpu.board import Board, long_mode, start_at


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets are a release's own: the message names both and what to do."""
    monkeypatch.setattr(unicorn, "__version__", "2.2.0")
    with pytest.raises(EngineUnavailable, match=r"needs unicorn 2\.1\.4, here is 2\.2\.0.*:execute=N"):
        Engine()


def test_missing_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unicorn the message says what to install."""
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'pytest-seves\[model\]'"):
        engine.check()


@pytest.mark.parametrize(
    ("attribute", "value", "what"),
    [
        ("find_state", lambda *_: None, "the CPU's state was not found"),
        ("_DR_AFTER_PAT", 128, "the debug registers are elsewhere"),
        ("peek", lambda _, size: bytes(size), "elsewhere"),
        ("C_BIT", 38, "code is not fetched as it should"),
    ],
)
def test_moved_state_is_noticed(
    monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, what: str
) -> None:
    """Each thing that is found in hidden state is checked."""
    monkeypatch.setattr(engine, attribute, value)
    with pytest.raises(EngineUnavailable, match=what):
        Engine()


def test_c_bit_is_one_that_the_engine_takes_for_an_address() -> None:
    """Page-table bits from 40 on are reserved in it."""
    assert nested_paging.C_BIT == 39


def test_peek_of_nothing_is_nothing() -> None:
    """Reading where there is no memory is no crash."""
    assert layout.peek(0x10, 16) == b""


COUNT = 3000
#: mov eax, 1; xor edx, edx; mov ecx, COUNT; again: add [0x1000], eax; inc edx; dec ecx; jnz again; hlt
LOOP = bytes.fromhex("66b801000000 6631d2 66b9b80b0000 6601060010 6642 6649 75f5 f4")


@pytest.mark.parametrize("blocks", [1, 7, 1000])
def test_instructions_execute_once_wherever_a_turn_ends(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """A read-modify-write loop, stopped after every few blocks, counts what it should."""
    from pytest_seves.model.cpu import machine

    monkeypatch.setattr(machine, "_TURN_BLOCKS", blocks)
    board = Board(LOOP, at=0x8000, registers=start_at(0x8000))
    board.work(turns=2 * COUNT + 100)
    assert board.guest(0x1000, 4) == COUNT
    assert board.vm.machine is not None
    assert board.vm.machine.engine.state.regs[layout.RDX] == COUNT


def test_a_guest_that_never_exits_lets_the_vmm_in() -> None:
    """Turns end after so many blocks: jmp $."""
    board = Board(bytes.fromhex("ebfe"))
    machine = board.vm.machine
    assert machine is not None
    assert [machine.work() for _ in range(3)] == [0, 0, 0]
    assert machine.now_ns > 0
    assert machine.trace.exits == 0


@pytest.mark.parametrize("kind", ["plain", "es"])
def test_code_that_is_changed_from_outside_is_translated_anew(kind: str) -> None:
    """again: mov byte [0x1000], 1; rdtsc; jmp again: with another number in it, once it has executed."""
    board = long_mode(bytes.fromhex("c604250010000001 0f31 ebf4"), kind)
    machine = board.vm.machine
    assert machine is not None
    private = kind != "plain"
    board.work(turns=3)
    assert board.guest(0x1000, 1, private=private) == 1
    machine.memory.write(0x8007, b"\x02", private)
    board.work(turns=3)
    assert board.guest(0x1000, 1, private=private) == 2
