# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire format."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.agent.frames import MAGIC, MAX_BODY, Decoder, FrameError, encode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
messages = st.lists(st.dictionaries(st.text(), json_values), max_size=5)


def frame(body: bytes) -> bytes:
    """A frame with any body."""
    return MAGIC + struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        b"Welcome",
        b"\x00SEX\x00\x00\x00\x02{}",
        b"\n" + frame(b"{}"),
        frame(b"nonsense"),
        frame(b"[]"),
        frame(b'"\xff"'),
        frame(b"[" * 100_000),
        MAGIC + struct.pack(">I", MAX_BODY + 1),
    ],
    ids=["text", "magic", "newline", "no-json", "no-object", "no-utf8", "nested", "oversize"],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """Garbage raises, and the error holds what was there."""
    with pytest.raises(FrameError) as caught:
        Decoder().feed(data)
    assert caught.value.data


def test_garbage_is_noticed_at_its_first_byte() -> None:
    """Nobody waits for the rest of a frame that cannot be one."""
    with pytest.raises(FrameError):
        Decoder().feed(b"W")


def test_garbage_after_a_frame() -> None:
    """The error's data begin where a frame should have begun."""
    with pytest.raises(FrameError) as caught:
        Decoder().feed(encode({"id": 1}) + b"Killed")
    assert caught.value.data == b"Killed"


def test_a_message_that_is_too_large() -> None:
    """Nothing is sent that the other side would refuse."""
    with pytest.raises(ValueError, match="at most"):
        encode({"data": "x" * MAX_BODY})


@given(messages, st.data())
def test_round_trip_in_any_pieces(wanted: list[dict[str, Any]], data: st.DataObject) -> None:
    """Messages come out as they went in, however the bytes are cut."""
    stream = b"".join(map(encode, wanted))
    decoder, got, at = Decoder(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[at : at + step])
        at += step
    assert got == wanted
    assert decoder.pending == b""


@given(st.binary())
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    """No input does anything else."""
    with suppress(FrameError):
        Decoder().feed(data)
