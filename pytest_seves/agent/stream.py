# SPDX-License-Identifier: GPL-2.0-or-later
"""A named byte stream between a descriptor on the host and the controller.

Data goes both ways in frames ``{"stream": name, "data": base64}``, the end of one way is ``{"stream": name,
"eof": true}``. Who receives says with ``{"stream": name, "ack": n}`` that it got rid of `n` more bytes; who
sends keeps at most :data:`~pytest_seves.agent.frames.STREAM_WINDOW` bytes unacknowledged and lets the source
wait. So a receiver that stops reading costs a bounded amount of memory.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
import time
from typing import Any, Callable, Optional

from pytest_seves.agent.bounded import Transcript
from pytest_seves.agent.frames import STREAM_WINDOW
from pytest_seves.agent.loop import Loop
from pytest_seves.agent.qmp_sabotage import QmpSaboteur

_CHUNK = 1 << 16


class Stream:
    """Relays one connected socket, and writes down what went through it. Owns the socket.

    :param send: takes a frame's message to the controller.
    :param on_end: called once, when the VMM has closed its end.
    :param saboteur: changes what passes; the transcript holds what the controller saw.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        loop: Loop,
        send: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
        limit: int,
        saboteur: Optional[QmpSaboteur] = None,
    ) -> None:
        self.name = name
        self.transcript = Transcript(limit)
        self._sock = sock
        self._loop = loop
        self._send = send
        self._on_end = on_end
        self._saboteur = saboteur
        self._unacknowledged = 0
        self._queue = bytearray()
        self._eof_wanted = False
        self._writable = True
        self.open = True
        sock.setblocking(False)
        loop.on_readable(sock.fileno(), self._readable)

    def receive(self, message: dict[str, Any]) -> None:
        """Take a frame from the controller.

        :raises ValueError: the frame is malformed, or more data than the window allows.
        """
        if not self.open:
            return
        if "ack" in message:
            self._acknowledged(int(message["ack"]))
        elif message.get("eof"):
            self._eof_wanted = True
            self._write()
        else:
            try:
                data = base64.b64decode(message["data"], validate=True)
            except (binascii.Error, KeyError, TypeError) as error:
                raise ValueError(f"stream {self.name}: wanted data in base64: {error!r}") from error
            if len(self._queue) + len(data) > STREAM_WINDOW:
                raise ValueError(f"stream {self.name}: more than {STREAM_WINDOW} bytes unacknowledged")
            self._queue += data if self._saboteur is None else self._sabotaged(self._saboteur, data)
            self._write()

    def _sabotaged(self, saboteur: QmpSaboteur, data: bytes) -> bytes:
        """What is left for the VMM; what it is not to see is written down and answered here."""
        passed = b""
        for message, answer in saboteur.towards_vmm(data):
            if answer is None:
                passed += message
                continue
            now = time.monotonic_ns()
            self._send({"stream": self.name, "ack": len(message)})
            self.transcript.add(now, "in", message)
            self._tell(answer, now)
        return passed

    def _acknowledged(self, count: int) -> None:
        self._unacknowledged -= count
        if self._unacknowledged < STREAM_WINDOW:
            self._loop.on_readable(self._sock.fileno(), self._readable)

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
        self._unacknowledged += len(data)
        if self._unacknowledged >= STREAM_WINDOW:
            self._loop.on_readable(self._sock.fileno(), None)
        self._send({"stream": self.name, "data": base64.b64encode(data).decode()})

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
                self._send({"stream": self.name, "ack": count})
        if self._queue and self._writable:
            self._loop.on_writable(self._sock.fileno(), self._write)
            return
        self._loop.on_writable(self._sock.fileno(), None)
        if self._eof_wanted and self._writable:
            self._writable = False
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def drain(self) -> None:
        """Write down what the VMM said last without waiting, and close."""
        while self.open and (data := self._read()):
            self.transcript.add(time.monotonic_ns(), "out", data)
        self.close()

    def close(self) -> None:
        """Close the socket and tell the controller."""
        if self.open:
            self.open = False
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self.transcript.finish(time.monotonic_ns())
            self._send({"stream": self.name, "eof": True})
