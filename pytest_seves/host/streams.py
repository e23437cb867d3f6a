# SPDX-License-Identifier: GPL-2.0-or-later
"""The controller's end of a byte stream to the host: a local socket pair, relayed in frames.

Flow control is that of :mod:`pytest_seves.agent.stream`: what the local reader has not taken is not
acknowledged.
"""

from __future__ import annotations

import base64
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pytest_seves.agent.frames import STREAM_WINDOW

_CHUNK = 1 << 16


class StreamPump:
    """Moves bytes between a local socket and stream frames, with one thread for each way.

    :param send: takes a frame's message to the agent.
    """

    def __init__(self, name: str, send: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self._send = send
        self._user, self._ours = socket.socketpair()
        self._taken = False
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unacknowledged = 0
        self._room = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{way}", daemon=True)
            for way, target in (("to-user", self._to_user), ("from-user", self._from_user))
        ]
        for thread in self._threads:
            thread.start()

    def take(self) -> socket.socket:
        """The user's end, which the caller closes.

        :raises ValueError: it was taken before.
        """
        if self._taken:
            raise ValueError(f"stream {self.name} is in use: it has one end only")
        self._taken = True
        return self._user

    def receive(self, message: dict[str, Any]) -> None:
        """Take a frame from the agent. Never blocks; the agent keeps to its window."""
        if "ack" in message:
            with self._room:
                self._unacknowledged -= int(message["ack"])
                self._room.notify()
        elif message.get("eof"):
            self._inbox.put(None)
        else:
            self._inbox.put(base64.b64decode(message["data"]))

    def _to_user(self) -> None:
        while (data := self._inbox.get()) is not None:
            with suppress(OSError):  # the user closed: go on for the transcript on the host
                self._ours.sendall(data)
            self._send({"stream": self.name, "ack": len(data)})
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)

    def _from_user(self) -> None:
        while True:
            try:
                data = self._ours.recv(_CHUNK)
            except OSError:
                return
            if not data:
                self._send({"stream": self.name, "eof": True})
                return
            with self._room:
                self._room.wait_for(lambda: self._unacknowledged < STREAM_WINDOW - _CHUNK or self._closed)
                if self._closed:
                    return
                self._unacknowledged += len(data)
            self._send({"stream": self.name, "data": base64.b64encode(data).decode()})

    def close(self) -> None:
        """End both ways at once; the user still reads what the local socket holds, then the end."""
        with self._room:
            self._closed = True
            self._room.notify()
        self._inbox.put(None)
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._ours.close()
        if not self._taken:
            self._user.close()
