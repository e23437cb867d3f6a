# SPDX-License-Identifier: GPL-2.0-or-later
"""The platform as a guest supervisor or a session reaches it (platform.py is the other side)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from . import wire

SOCKET_NAME = "platform.sock"


@contextlib.contextmanager
def short_path(directory: str) -> Iterator[str]:
    """The socket's path through a descriptor: a UNIX socket's name is limited to 108 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


class PlatformClient:
    """A guest supervisor's connection.

    :param descriptors: /proc/PID/mem and pidfd of the VMM; None for a client that only asks.
    """

    def __init__(self, directory: str, descriptors: tuple[int, int] | None) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(directory) as path:
            self._connection.connect(path)
        socket.send_fds(self._connection, [b"\0"], list(descriptors or ()))

    def request(self, operation: str, payload: bytes = b"", **values: object) -> tuple[wire.Header, bytes]:
        """Send one operation and wait for its answer; `status` in it is the firmware's.

        :raise wire.Disconnected: the platform is gone, or has dropped us because our VMM is.
        """
        try:
            self._connection.sendall(wire.pack({"op": operation, **values}, payload))
        except ConnectionError as error:
            raise wire.Disconnected(str(error)) from None
        return wire.receive(self._connection)

    def close(self) -> None:
        """Release everything held through this connection."""
        self._connection.close()
