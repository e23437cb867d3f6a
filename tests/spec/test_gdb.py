# SPDX-License-Identifier: GPL-2.0-or-later
"""The packet layer of GDB's remote protocol.

Origin of the examples: "Debugging with GDB", appendix E, and what QEMU 7.2 answered.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.spec.gdb import PacketError, PacketReader, encode


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"HTTP/1.0 400", "wanted a packet"),
        (b"$OK#00", "wanted checksum b'9a', got b'00'"),
        (b"$*~#a8", "wanted something to repeat"),
        (b"$0*\x1f#79", "wanted something to repeat 3 to 97 times"),
        (b"$" + b"x" * (1 << 17), "a packet of more than 65536 bytes"),
    ],
)
def test_nonsense(said: bytes, complaint: str) -> None:
    """What is no packet is named, and shown."""
    with pytest.raises(PacketError, match=complaint):
        PacketReader().feed(said)


def test_packets() -> None:
    """Acknowledgements are skipped, escapes undone, repetitions expanded, halves kept."""
    reader = PacketReader()
    assert reader.feed(b"+$OK#9a") == ["OK"]
    assert reader.feed(b"$0* #7a+$E0") == ["0000"]
    assert reader.feed(b"1#a6$}\x03#80") == ["E01", "#"]
    assert encode("g") == b"$g#67"


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="#$}*"), max_size=40), max_size=5))
def test_round_trip(packets: list[str]) -> None:
    """What is written is read, however it is cut."""
    stream = b"".join(encode(packet) for packet in packets)
    reader = PacketReader()
    read = [packet for byte in stream for packet in reader.feed(bytes([byte]))]
    assert read == packets


@given(st.binary(max_size=200))
def test_any_bytes(said: bytes) -> None:
    """Nothing that a stub can say crashes the reader."""
    with suppress(PacketError):
        PacketReader().feed(said)
