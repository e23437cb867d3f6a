# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire format between the controller and the agent.

A frame is ``b"\\x00SEV"``, the length of the body as an unsigned 32-bit big-endian number, and the body: one
JSON object in UTF-8. Nothing else may appear on the channel; what does is garbage (a login banner, a stray
``print``).
"""

from __future__ import annotations

import json
import struct
from typing import Any

MAGIC = b"\x00SEV"
MAX_BODY = 64 << 20
"""The largest body in bytes."""

_HEADER = struct.Struct(">4sI")


class FrameError(ValueError):
    """The bytes on the channel are no frame.

    :ivar data: the offending bytes, from the place where a frame should have begun.
    """

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


def encode(message: dict[str, Any]) -> bytes:
    """One frame that holds `message`.

    :raises ValueError: the body would be larger than :data:`MAX_BODY`.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_BODY:
        raise ValueError(f"a frame holds at most {MAX_BODY} bytes; got {len(body)}")
    return _HEADER.pack(MAGIC, len(body)) + body


class Decoder:
    """Cuts a byte stream into messages; feed it whatever arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bytes:
        """The bytes of an incomplete frame."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completed, in order.

        :raises FrameError: the stream is not made of frames; the decoder is of no use afterwards.
        """
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while True:
            message = self._next()
            if message is None:
                return messages
            messages.append(message)

    def _next(self) -> dict[str, Any] | None:
        buffer = self._buffer
        if bytes(buffer[: len(MAGIC)]) != MAGIC[: len(buffer)]:
            raise FrameError("no frame begins here", bytes(buffer))
        if len(buffer) < _HEADER.size:
            return None
        size = _HEADER.unpack_from(buffer)[1]
        if size > MAX_BODY:
            raise FrameError(
                f"a frame of {size} bytes is above the limit of {MAX_BODY}", bytes(buffer[:4096])
            )
        end = _HEADER.size + size
        if len(buffer) < end:
            return None
        body = bytes(buffer[_HEADER.size : end])
        del buffer[:end]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a frame's body is no JSON: {error}", body) from error
        if not isinstance(message, dict):
            raise FrameError(f"a frame's body is a {type(message).__name__}, not an object", body)
        return message
