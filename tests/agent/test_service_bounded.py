# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps of a fixed size lose nothing that they do not count."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.agent.bounded import BoundedBytes, Packed, Transcript

chunks = st.lists(st.binary(max_size=40), max_size=30)


@given(chunks, st.integers(2, 64))
def test_bytes(parts: list[bytes], limit: int) -> None:
    """Head and tail are the beginning and the end, and dropped is what lies between."""
    kept, whole = BoundedBytes(limit), b"".join(parts)
    for part in parts:
        kept.add(part)
    assert kept.total == len(whole) == len(kept.head) + kept.dropped + len(kept.tail)
    assert whole.startswith(kept.head)
    assert whole.endswith(kept.tail)
    assert len(kept.head) + len(kept.tail) == min(limit, len(whole))


@given(st.lists(st.tuples(st.sampled_from(["in", "out"]), st.binary(max_size=40)), max_size=30))
def test_transcript_keeps_everything(parts: list[tuple[str, bytes]]) -> None:
    """With room enough each direction is there in full, however reads cut it."""
    transcript = Transcript(1 << 20)
    for time, (direction, data) in enumerate(parts):
        transcript.add(time, direction, data)
    transcript.finish(len(parts))
    assert transcript.dropped == 0
    for wanted in ("in", "out"):
        whole = b"".join(data for direction, data in parts if direction == wanted)
        got = "".join(text for _, direction, text in transcript.as_json() if direction == wanted)
        assert got == whole.decode("utf-8", "backslashreplace")


def test_transcript_stamps_what_has_no_newline() -> None:
    """A message without a newline, as QMP clients send it, has the time at which it passed."""
    transcript = Transcript(1 << 20)
    transcript.add(1, "in", b'{"execute": "cont"}')
    transcript.add(2, "out", b'{"return": {}}\r\n')
    transcript.add(3, "in", b'{"execute": "quit"}')
    assert [time for time, _, _ in transcript.as_json()] == [1, 2, 3]


@given(st.lists(st.binary(max_size=200), max_size=50), st.integers(2, 100))
def test_transcript_is_bounded(parts: list[bytes], limit: int) -> None:
    """However much is said, not more than the limit is kept (escapes aside)."""
    transcript = Transcript(limit)
    for time, data in enumerate(parts):
        transcript.add(time, "out", bytes(byte & 0x7F for byte in data))
    transcript.finish(0)
    assert sum(len(text) for _, _, text in transcript.as_json()) <= limit


@given(chunks)
def test_packed_lines(parts: list[bytes]) -> None:
    """What comes out of the compressor is what went in."""
    packed = Packed()
    for part in parts:
        packed.add(part)
    assert zlib.decompress(packed.finish()) == b"".join(parts)


def test_packed_lines_above_the_limit() -> None:
    """Above the limit whole lines are counted instead."""
    packed = Packed(limit=100)
    lines = [zlib.crc32(b"%d" % n).to_bytes(4, "big").hex().encode() * 8 + b"\n" for n in range(20_000)]
    for line in lines:
        packed.add(line)
    kept = zlib.decompress(packed.finish())
    assert packed.dropped > 0
    assert kept.count(b"\n") + packed.dropped == len(lines)
    assert b"".join(lines).startswith(kept)
