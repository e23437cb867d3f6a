# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between a guest's supervisor and the platform: a JSON header and a payload, over a UNIX socket."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTHS = struct.Struct("<II")

Header = dict[str, Any]


class Disconnected(Exception):
    """The other side closed the connection."""


def pack(header: Header, payload: bytes = b"") -> bytes:
    """One message, ready to send."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def receive(connection: socket.socket) -> tuple[Header, bytes]:
    """The next message.

    :raise Disconnected: the connection ended, between messages or inside one.
    """
    header_size, payload_size = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    header = json.loads(_exactly(connection, header_size))
    return header, _exactly(connection, payload_size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        try:
            count = connection.recv_into(view[done:])
        except ConnectionError as error:
            raise Disconnected(str(error)) from None
        if count == 0:
            raise Disconnected(f"end of stream after {done} of {size} bytes")
        done += count
    return bytes(data)
