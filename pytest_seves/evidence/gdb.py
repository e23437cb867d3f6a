# SPDX-License-Identifier: GPL-2.0-or-later
"""The packet layer of GDB's remote serial protocol, and a conversation in it as the agent overheard it.

Source: "Debugging with GDB", appendix E (GDB Remote Serial Protocol), section E.1. A packet is ``$``, data,
``#`` and two hex digits: the sum of the data's bytes modulo 256. ``}`` escapes a byte (xor 0x20), ``*``
repeats the one before. Each side acknowledges with ``+``; byte 0x03 interrupts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_seves.errors import SevesError

INTERRUPT = b"\x03"
#: Longer packets are nonsense: QEMU announces PacketSize=1000 (hex).
LONGEST = 1 << 16
_ESCAPE, _REPEAT = ord("}"), ord("*")


class PacketError(SevesError):
    """What came is no packet."""


def encode(data: str) -> bytes:
    """The packet that carries `data`, which needs no escapes."""
    raw = data.encode("ascii")
    return b"$" + raw + b"#%02x" % (sum(raw) & 0xFF)


class PacketReader:
    """Cuts what one side says into packets."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[str]:
        """The data of each packet that `data` completes, unescaped and expanded.

        :raise PacketError: something other than packets and acknowledgements.
        """
        self._pending += data
        packets = []
        while self._pending:
            if self._pending[:1] in (b"+", b"-", INTERRUPT):
                self._pending = self._pending[1:]
                continue
            if self._pending[:1] != b"$":
                raise PacketError(f"wanted a packet ($...#xx), got {self._pending[:80]!r}")
            end = self._pending.find(b"#")
            if end < 0 or len(self._pending) < end + 3:
                if len(self._pending) > LONGEST:
                    raise PacketError(f"a packet of more than {LONGEST} bytes: {self._pending[:80]!r}...")
                break
            packets.append(_data(self._pending[1:end], self._pending[end + 1 : end + 3]))
            self._pending = self._pending[end + 3 :]
        return packets


def _data(raw: bytes, checksum: bytes) -> str:
    wanted = b"%02x" % (sum(raw) & 0xFF)
    if checksum.lower() != wanted:
        raise PacketError(f"packet {raw[:80]!r}: wanted checksum {wanted!r}, got {checksum!r}")
    out = bytearray()
    bytes_ = iter(raw)
    for byte in bytes_:
        if byte == _ESCAPE:
            out.append(next(bytes_, 0) ^ 0x20)
        elif byte == _REPEAT:
            count = next(bytes_, 0) - 29
            if not out or not 3 <= count <= 97:
                raise PacketError(f"packet {raw[:80]!r}: wanted something to repeat 3 to 97 times")
            out += out[-1:] * count
        else:
            out.append(byte)
    return out.decode("latin-1")


@dataclass(frozen=True)
class GdbTranscript:
    """Packets with their answers in order; `nonsense` is what the stub said that is no packet."""

    exchanges: tuple[tuple[str, str | None], ...] = ()
    nonsense: str = ""

    @classmethod
    def from_chunks(cls, chunks: Iterable[tuple[int, str, str]]) -> GdbTranscript:
        """Rebuild the conversation.

        :param chunks: (host monotonic ns, ``"in"`` towards the VMM or ``"out"`` from it, text), as read.
        """
        readers = {"in": PacketReader(), "out": PacketReader()}
        exchanges: list[tuple[str, str | None]] = []
        for _, direction, text in chunks:
            try:
                packets = readers[direction].feed(text.encode("latin-1", "replace"))
            except PacketError as error:
                return cls(tuple(exchanges), str(error))
            for packet in packets:
                if direction == "in":
                    exchanges.append((packet, None))
                elif exchanges and exchanges[-1][1] is None:
                    exchanges[-1] = (exchanges[-1][0], packet)
        return cls(tuple(exchanges))

    def answers(self, packet: str) -> list[str | None]:
        """What the stub answered to each `packet`; None for none."""
        return [answer for sent, answer in self.exchanges if sent == packet]
