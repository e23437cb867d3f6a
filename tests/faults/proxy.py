# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP proxy on loopback that delays, cuts silently, resets, refuses and corrupts.

It runs in a thread of its own. Another process has it do these things through :func:`tell`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: closing sends RST


class Proxy:
    """Forwards connections to one address; a context manager.

    :param upstream: port on loopback to forward to.
    :param delay_s: how long everything takes, in each direction: half of a round trip.
    :ivar port: where it listens; `control` is where :func:`tell` does.
    """

    def __init__(self, upstream: int, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._upstream = upstream
        self._cut = self._corrupt = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        start = self._loop.run_until_complete
        self._server = start(asyncio.start_server(self._forward, "127.0.0.1", 0))
        self._control = start(asyncio.start_server(self._obey, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.control = int(self._control.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()

    # What it can do wrong, in the loop's thread

    def cut(self) -> None:
        """Forward nothing any more, in either direction, and keep every socket open, new ones too."""
        self._cut = True

    def reset(self) -> None:
        """Send RST to both sides of every connection; new ones work."""
        for writer in list(self._writers):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def refuse(self) -> None:
        """:meth:`reset`, and no new connection is accepted."""
        self._server.close()
        self.reset()

    def stop_listening(self) -> None:
        """:meth:`refuse`, from another thread."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result()

    async def _refuse(self) -> None:
        self.refuse()

    def corrupt(self) -> None:
        """Flip a bit of the next bytes that are forwarded."""
        self._corrupt = True

    # How it forwards

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        for one in (writer, far_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._writers.add(one)
        pumps = (self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._tasks.update(asyncio.create_task(pump) for pump in pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self._corrupt:
                    self._corrupt, data = False, data[:-1] + bytes([data[-1] ^ 1])
                if not self._cut:
                    self._loop.call_later(self.delay_s, _write, writer, data)
        if not self._cut:
            self._loop.call_later(self.delay_s, writer.close)
            self._writers.discard(writer)

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        word = (await reader.readline()).decode().strip()
        {"cut": self.cut, "reset": self.reset, "refuse": self.refuse, "corrupt": self.corrupt}[word]()
        writer.write(b"done\n")
        writer.close()

    def close(self) -> None:
        """Close every socket and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for server in (self._server, self._control):
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.wait(self._tasks))
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


def tell(control: int, word: str) -> None:
    """Have the proxy at `control` do what the method called `word` does, before this returns."""
    with socket.create_connection(("127.0.0.1", control)) as connection:
        connection.sendall(f"{word}\n".encode())
        assert connection.recv(16) == b"done\n"
