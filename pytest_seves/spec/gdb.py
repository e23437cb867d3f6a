# SPDX-License-Identifier: GPL-2.0-or-later
"""The packet layer of GDB's remote serial protocol.

Source: "Debugging with GDB", appendix E (GDB Remote Serial Protocol), section E.1. A packet is ``$``, data,
``#`` and two hex digits: the sum of the data's bytes modulo 256. ``}`` escapes a byte (xor 0x20), ``*``
repeats the one before. Each side acknowledges with ``+``; byte 0x03 interrupts.
"""

from __future__ import annotations

INTERRUPT = b"\x03"
#: Longer packets are nonsense: QEMU announces PacketSize=1000 (hex).
LONGEST = 1 << 16
_BETWEEN = b"+-" + INTERRUPT
_ESCAPE, _REPEAT = ord("}"), ord("*")


class PacketError(ValueError):
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
        pending = (self._pending + data).lstrip(_BETWEEN)
        packets = []
        while pending:
            if pending[:1] != b"$":
                raise PacketError(f"wanted a packet ($...#xx), got {pending[:80]!r}")
            end = pending.find(b"#")
            if end < 0 or len(pending) < end + 3:
                if len(pending) > LONGEST:
                    raise PacketError(f"a packet of more than {LONGEST} bytes: {pending[:80]!r}...")
                break
            packets.append(_data(pending[1:end], pending[end + 1 : end + 3]))
            pending = pending[end + 3 :].lstrip(_BETWEEN)
        self._pending = pending
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
