# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps of a fixed size: the beginning and the end of what was said stay, the rest is counted."""

from __future__ import annotations

import base64
import codecs
import zlib
from collections import deque
from typing import Any

DEFAULT_LIMIT = 1 << 20


class BoundedBytes:
    """A byte stream of which the first and the last half of `limit` bytes are kept."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._head_limit = limit // 2
        self._tail_limit = limit - limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Append `data`."""
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._tail_limit:  # cut seldom: a cut moves the whole tail
            self._cut()

    def _cut(self) -> None:
        if len(self._tail) > self._tail_limit:
            del self._tail[: len(self._tail) - self._tail_limit]

    @property
    def head(self) -> bytes:
        """The first bytes."""
        return bytes(self._head)

    @property
    def tail(self) -> bytes:
        """The last bytes, those in :attr:`head` excluded."""
        self._cut()
        return bytes(self._tail)

    def since(self, start: int) -> bytes:
        """What is kept of the bytes from `start` on."""
        self._cut()
        gone = self.total - len(self._tail)
        return bytes(self._head[start:]) + bytes(self._tail[max(start - gone, 0) :])

    @property
    def dropped(self) -> int:
        """How many bytes between head and tail are gone."""
        self._cut()
        return self.total - len(self._head) - len(self._tail)

    def end(self, size: int) -> bytes:
        """The last kept bytes, at most `size`."""
        return (self.head + self.tail)[-size:]

    def as_json(self) -> dict[str, Any]:
        """``{"head", "tail"}`` in base64 and ``"dropped"``."""
        return {
            "head": base64.b64encode(self.head).decode(),
            "tail": base64.b64encode(self.tail).decode(),
            "dropped": self.dropped,
        }


class Transcript:
    """What went both ways as it went, each piece with a time stamp; bounded like :class:`BoundedBytes`.

    Pieces are not joined to lines: one peer ends its messages with a newline and the other does not, and a
    message must have the time at which it passed. What is no UTF-8 becomes a backslash escape.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._half = limit // 2
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {direction: decoder("backslashreplace") for direction in ("in", "out")}
        self._head: list[tuple[int, str, str]] = []
        self._tail: deque[tuple[int, str, str]] = deque()
        self._head_size = 0
        self._tail_size = 0
        self._head_open = True
        self.dropped = 0

    def add(self, time_ns: int, direction: str, data: bytes, final: bool = False) -> None:
        """Append `data` that went "in" (to the VMM) or "out" (from it)."""
        text = self._decoders[direction].decode(data, final)
        if text:
            self._keep(time_ns, direction, text)

    def _keep(self, time_ns: int, direction: str, text: str) -> None:
        self.dropped += max(0, len(text) - self._half)
        text = text[: self._half]
        if self._head_open and self._head_size + len(text) <= self._half:
            self._head.append((time_ns, direction, text))
            self._head_size += len(text)
            return
        self._head_open = False
        self._tail.append((time_ns, direction, text))
        self._tail_size += len(text)
        while self._tail_size > self._half:
            gone = len(self._tail.popleft()[2])
            self._tail_size -= gone
            self.dropped += gone

    def finish(self, time_ns: int) -> None:
        """Keep the first bytes of a character of which the rest never came."""
        for direction in self._decoders:
            self.add(time_ns, direction, b"", final=True)

    def as_json(self) -> list[list[Any]]:
        """``[[time in ns, "in" or "out", text], ...]`` in order; `dropped` counts characters."""
        return [list(entry) for entry in (*self._head, *self._tail)]


class Packed:
    """Lines, compressed as they arrive; above `limit` compressed bytes they are dropped and counted."""

    def __init__(self, limit: int = 32 << 20) -> None:
        self._limit = limit
        self._deflate = zlib.compressobj(6)
        self._chunks: list[bytes] = []
        self._size = 0
        self._partial = b""
        self.dropped = 0

    def add(self, data: bytes) -> None:
        """Append `data`; it may end within a line."""
        data = self._partial + data
        cut = data.rfind(b"\n") + 1
        whole, self._partial = data[:cut], data[cut:]
        if self._size > self._limit:
            self.dropped += whole.count(b"\n")
            return
        self._store(self._deflate.compress(whole))

    def _store(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.append(chunk)
            self._size += len(chunk)

    def finish(self) -> bytes:
        """The whole as one zlib stream. Call once; an unfinished last line is included."""
        self._store(self._deflate.compress(self._partial))
        self._partial = b""
        self._store(self._deflate.flush())
        return b"".join(self._chunks)
