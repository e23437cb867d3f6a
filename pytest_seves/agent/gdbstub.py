# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger's side of a VMM's gdbstub. The packet layer is :mod:`pytest_seves.spec.gdb`."""

from __future__ import annotations

from pytest_seves.agent.stream import Stream
from pytest_seves.spec.gdb import INTERRUPT, PacketError, PacketReader, encode

ANSWER_S = 5.0
"""How long a stub may take for an answer."""
_MOST_PACKETS = 1000


class StubError(Exception):
    """The stub closed, took too long or talked nonsense: evidence about the VMM, not an error of ours."""


class GdbStub:
    """One conversation."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader = PacketReader()
        self._arrived: list[str] = []
        self._trouble = ""

    def feed(self, data: bytes) -> None:
        """Take what the stub said."""
        if self._trouble:
            return
        try:
            self._arrived += self._reader.feed(data)
        except PacketError as error:
            self._trouble = str(error)
        if len(self._arrived) > _MOST_PACKETS:
            self._trouble = f"more than {_MOST_PACKETS} packets that nobody asked for"

    def ask(self, packet: str) -> None:
        """Send a packet. A step or continue is interrupted at once."""
        self._stream.send(encode(packet))
        if packet[:1] in ("s", "c"):
            self._stream.send(INTERRUPT)

    @property
    def told(self) -> bool:
        """Whether :meth:`take` has something to say."""
        return bool(self._arrived or self._trouble or not self._stream.open)

    def take(self) -> str:
        """The answer.

        :raise StubError: there is none.
        """
        if self._trouble:
            raise StubError(self._trouble)
        if self._arrived:
            self._stream.send(b"+")
            return self._arrived.pop(0)
        closed = not self._stream.open
        raise StubError("the stub has closed the connection" if closed else "no answer before the deadline")

    def leave(self) -> None:
        """Say no more."""
        self._stream.finish()
