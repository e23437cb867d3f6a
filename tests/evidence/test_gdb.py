# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversation with a gdbstub as it was overheard."""

from __future__ import annotations

from pytest_seves.evidence.gdb import GdbTranscript


def test_a_conversation() -> None:
    """Each packet with its answer; one that was not answered has none."""
    chunks = [
        (1, "in", "$g#67"),
        (2, "out", "+$00"),
        (3, "out", "00#c0"),
        (4, "in", "+$s#73\x03"),
        (5, "out", "$T02thread:01;#04"),
        (6, "in", "+$D#44"),
    ]
    transcript = GdbTranscript.from_chunks(chunks)
    assert transcript.exchanges == (("g", "0000"), ("s", "T02thread:01;"), ("D", None))
    assert transcript.answers("s") == ["T02thread:01;"]


def test_a_stub_that_talks_nonsense() -> None:
    """What came before it is kept, and the nonsense is told."""
    transcript = GdbTranscript.from_chunks([(1, "in", "$g#67"), (2, "out", "\xff\x00?")])
    assert transcript.exchanges == (("g", None),)
    assert "wanted a packet" in transcript.nonsense
