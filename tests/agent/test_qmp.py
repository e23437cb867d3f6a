# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's side of QMP, as messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.agent.qmp import MOST_EVENTS, Qmp

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n{"return": {}}\r\n'


def talking() -> tuple[Qmp, list[bytes]]:
    """A conversation that has begun, and what our side says in it."""
    said: list[bytes] = []
    qmp = Qmp(said.append, ["STOP"])
    qmp.feed(GREETING)
    assert qmp.ready
    said.clear()
    return qmp, said


def test_a_command() -> None:
    """It carries an id, by which its answer is found; what it returns is kept where that is wanted."""
    qmp, said = talking()
    first, second = qmp.execute("a", {}), qmp.execute("b", {"n": 1}, keep=True)
    assert said[1] == b'{"execute":"b","arguments":{"n":1},"id":"00002"}'
    qmp.feed(b'{"return": {"x": 2}, "id": "00002"}\n{"error": {}, "id": "00001"}\n')
    assert (qmp.answers[first].kind, qmp.answers[first].value) == ("error", None)
    assert (qmp.answers[second].kind, qmp.answers[second].value) == ("return", {"x": 2})


def test_too_many_events() -> None:
    """A flood of events that are waited for is not kept for ever."""
    qmp, _ = talking()
    qmp.feed(b'{"event": "STOP"}\n' * MOST_EVENTS)
    assert not qmp.nonsense
    qmp.feed(b'{"event": "STOP"}\n')
    assert qmp.nonsense == f"more than {MOST_EVENTS} events"


@given(st.integers(1, 40))
def test_pieces(size: int) -> None:
    """It does not matter how what the VMM says is cut."""
    qmp = Qmp(lambda data: None, ["STOP"])
    text = GREETING + b'{"event": "STOP"}\n{"event": "X"}\n{"event": "STOP"}\n'
    for start in range(0, len(text), size):
        qmp.feed(text[start : start + size])
    assert (qmp.events, qmp.nonsense) == (["STOP", "STOP"], "")


@given(st.lists(st.binary(max_size=60) | st.sampled_from([GREETING, b'{"id": {}}\n', b"null\n"]), max_size=6))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Nothing that a VMM can say crashes it."""
    qmp = Qmp(lambda data: None, [])
    for piece in pieces:
        qmp.feed(piece)
