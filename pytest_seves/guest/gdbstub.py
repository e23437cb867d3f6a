# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger's side of a VMM's gdbstub, over a connected socket.

The libraries that speak this protocol dial a TCP port or a serial line themselves; our way to the host is a
stream through the agent, and the packet layer (:mod:`pytest_seves.evidence.gdb`) is small.
"""

from __future__ import annotations

import socket
import time

from pytest_seves.evidence.gdb import INTERRUPT, PacketError, PacketReader, encode

_ANSWER_S = 5.0


class StubError(Exception):
    """The stub closed, took too long or talked nonsense: evidence about the VMM, not an error of ours."""


class GdbStub:
    """One conversation.

    :param deadline: on the monotonic clock, for everything.
    """

    def __init__(self, peer: socket.socket, deadline: float) -> None:
        self._peer = peer
        self._deadline = deadline
        self._reader = PacketReader()
        self._arrived: list[str] = []

    def exchange(self, packet: str) -> str:
        """Send a packet and wait for the answer. A step or continue is interrupted at once.

        :raise StubError: there is none.
        """
        limit = min(self._deadline, time.monotonic() + _ANSWER_S)
        self._send(encode(packet))
        if packet[:1] in ("s", "c"):
            self._send(INTERRUPT)
        while not self._arrived:
            self._receive(limit)
        self._send(b"+")
        return self._arrived.pop(0)

    def _send(self, data: bytes) -> None:
        try:
            self._peer.sendall(data)
        except OSError as error:
            raise StubError(f"the stub has closed the connection: {error}") from error

    def _receive(self, limit: float) -> None:
        left = limit - time.monotonic()
        if left <= 0:
            raise StubError("no answer before the deadline")
        self._peer.settimeout(left)
        try:
            data = self._peer.recv(1 << 16)
            if not data:
                raise StubError("the stub has closed the connection")
            self._arrived += self._reader.feed(data)
        except TimeoutError as error:
            raise StubError("no answer before the deadline") from error
        except (OSError, PacketError) as error:
            raise StubError(str(error)) from error
