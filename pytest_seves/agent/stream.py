# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversation with the VMM over a connected socket, written down as it passes."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Callable, Optional

from pytest_seves.agent.bounded import Transcript
from pytest_seves.agent.loop import Loop
from pytest_seves.agent.qmp_sabotage import QmpSaboteur

_CHUNK = 1 << 16


class Stream:
    """Our end of one connected socket, which it owns.

    :param on_end: called once, when the VMM has closed its end.
    :param saboteur: changes what passes; the transcript holds what our side saw.
    :ivar on_data: is told what the VMM says.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        on_end: Callable[[], None],
        limit: int,
        saboteur: Optional[QmpSaboteur] = None,
    ) -> None:
        self.transcript = Transcript(limit)
        self.on_data: Callable[[bytes], None] = lambda data: None
        self._sock = sock
        self._loop = loop
        self._on_end = on_end
        self._saboteur = saboteur
        self._queue = bytearray()
        self._finished = False
        self._writable = True
        self.open = True
        sock.setblocking(False)
        loop.on_readable(sock.fileno(), self._readable)

    def send(self, data: bytes) -> None:
        """Say `data`, as soon as the VMM takes it; a VMM that has closed its end never does."""
        if self.open:
            self._queue += data if self._saboteur is None else self._sabotaged(self._saboteur, data)
            self._write()

    def finish(self) -> None:
        """Say no more. What the VMM still says is written down."""
        if self.open:
            self._finished = True
            self._write()

    def _sabotaged(self, saboteur: QmpSaboteur, data: bytes) -> bytes:
        """What is left for the VMM; what it is not to see is written down and answered here."""
        passed = b""
        for message, answer in saboteur.towards_vmm(data):
            if answer is None:
                passed += message
                continue
            now = time.monotonic_ns()
            self.transcript.add(now, "in", message)
            self._tell(answer, now)
        return passed

    def _readable(self) -> None:
        data = self._read()
        if data is None:
            return
        if not data:
            self.close()
            self._on_end()
            return
        if self._saboteur is not None:
            data = self._saboteur.from_vmm(data)
        if data:
            self._tell(data, time.monotonic_ns())

    def _tell(self, data: bytes, time_ns: int) -> None:
        self.transcript.add(time_ns, "out", data)
        self.on_data(data)

    def _read(self) -> bytes | None:
        try:
            return self._sock.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def _write(self) -> None:
        if self._queue and self._writable:
            before = time.monotonic_ns()  # so that whatever the VMM does about it is later
            try:
                count = self._sock.send(self._queue[:_CHUNK])
            except BlockingIOError:
                count = 0
            except OSError:  # the VMM closed its end: nobody will ever read this
                self._writable = False
                count = 0
            if count:
                self.transcript.add(before, "in", bytes(self._queue[:count]))
                del self._queue[:count]
        if self._queue and self._writable:
            self._loop.on_writable(self._sock.fileno(), self._write)
            return
        self._loop.on_writable(self._sock.fileno(), None)
        if self._finished and self._writable:
            self._writable = False
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def drain(self) -> None:
        """Write down what the VMM said last without waiting, and close."""
        while self.open and (data := self._read()):
            self.transcript.add(time.monotonic_ns(), "out", data)
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self.open:
            self.open = False
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self.transcript.finish(time.monotonic_ns())
