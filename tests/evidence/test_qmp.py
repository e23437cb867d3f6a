# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP transcripts: pairing, and peers that talk nonsense."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.evidence.qmp import QmpTranscript

GREETING = '{"QMP": {"version": {}, "capabilities": []}}\n'


@pytest.mark.parametrize("nonsense", ["hello there", "[1, 2]", '"text"', "[" * 100_000])
def test_nonsense_is_kept(nonsense: str) -> None:
    """What a peer says that is no QMP is kept, and what follows is still read."""
    transcript = QmpTranscript.from_chunks([(1, "out", nonsense + "\n"), (2, "out", GREETING)])
    assert transcript.noise == ((1, nonsense),)
    assert transcript.greeting is not None


@given(st.lists(st.text()))
def test_no_text_is_too_odd(texts: list[str]) -> None:
    """Whatever a peer says, the transcript can be built."""
    QmpTranscript.from_chunks([(1, "out", text) for text in texts])


def test_commands_are_paired_with_their_answers() -> None:
    """Answers are found by id; errors and commands never answered are told apart."""
    transcript = QmpTranscript.from_chunks(
        [
            (1, "out", GREETING),
            (2, "in", '{"execute": "query-sev", "id": "a"}{"execute": "cont", "id": "b"}\n'),
            (3, "out", '{"return": {"state": "running"}, "id": "a"}\n{"error": {"class": "GenericError"}, '),
            (4, "out", '"id": "b"}\n{"event": "STOP"}\n'),
            (5, "in", '{"execute": "quit", "id": "c"}\n'),
        ]
    )
    asked, refused, unanswered = transcript.exchanges
    assert (asked.reply, asked.sent_ns, asked.received_ns) == ({"state": "running"}, 2, 3)
    assert refused.error == {"class": "GenericError"}
    assert unanswered.received_ns is None
    assert transcript.replies("query-sev") == [{"state": "running"}]
    assert transcript.replies("cont") == transcript.replies("quit") == []
    assert [event for _, event in transcript.events] == [{"event": "STOP"}]


def test_messages_split_anywhere() -> None:
    """The transcript does not depend on how reads cut the stream."""
    text = GREETING + json.dumps({"return": {"text": '} {\n"}'}, "id": 1}) + "\n"
    asked = (0, "in", '{"execute": "x", "id": 1}')
    whole = QmpTranscript.from_chunks([asked, (1, "out", text)])
    cut = QmpTranscript.from_chunks([asked, *((1, "out", letter) for letter in text)])
    assert whole == cut


def test_half_a_message_at_the_end_is_no_answer() -> None:
    """A peer that dies in the middle of an answer has not answered."""
    transcript = QmpTranscript.from_chunks(
        [(0, "in", '{"execute": "x", "id": 1}'), (1, "out", '{"return": {')]
    )
    assert transcript.replies("x") == []
