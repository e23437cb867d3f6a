# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP conversation as the agent overheard it on the host, with the host's monotonic clock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exchange:
    """A command and the answer to it; `reply` is None when the VMM never answered."""

    command: str
    arguments: dict[str, Any]
    sent_ns: int
    received_ns: int | None
    reply: Any
    error: dict[str, Any] | None

    def __str__(self) -> str:
        answer = "no answer" if self.received_ns is None else json.dumps(self.error or self.reply)
        return f"{self.sent_ns} {self.command} {json.dumps(self.arguments)} -> {answer}"


@dataclass(frozen=True)
class QmpTranscript:
    """Commands with their answers, and events, in order.

    `noise` is what is no QMP: (host monotonic ns, text); a VMM that talks nonsense is judged, not our error.
    """

    greeting: dict[str, Any] | None
    exchanges: tuple[Exchange, ...]
    events: tuple[tuple[int, dict[str, Any]], ...]
    noise: tuple[tuple[int, str], ...] = ()

    @classmethod
    def from_chunks(cls, chunks: Iterable[tuple[int, str, str]]) -> QmpTranscript:
        """Rebuild the conversation.

        :param chunks: (host monotonic ns, ``"in"`` towards the VMM or ``"out"`` from it, text), as read.
        """
        sent: list[tuple[int, dict[str, Any]]] = []
        replies: dict[Any, tuple[int, dict[str, Any]]] = {}
        events: list[tuple[int, dict[str, Any]]] = []
        noise: list[tuple[int, str]] = []
        greeting = None
        for time_ns, direction, message in _messages(chunks):
            if isinstance(message, str):
                noise.append((time_ns, message))
            elif direction == "in":
                sent.append((time_ns, message))
            elif "QMP" in message:
                greeting = message["QMP"]
            elif "event" in message:
                events.append((time_ns, message))
            else:
                replies[message.get("id")] = (time_ns, message)
        pairs = tuple(_pair(at, request, replies) for at, request in sent)
        return cls(greeting, pairs, tuple(events), tuple(noise))

    def all(self, command: str) -> list[Exchange]:
        """Every exchange of `command`, in order."""
        return [exchange for exchange in self.exchanges if exchange.command == command]

    def replies(self, command: str) -> list[Any]:
        """What `command` returned, each time it was answered without an error."""
        return [e.reply for e in self.all(command) if e.received_ns is not None and e.error is None]


def _messages(chunks: Iterable[tuple[int, str, str]]) -> Iterable[tuple[int, str, dict[str, Any] | str]]:
    """Objects, and lines that are none as text."""
    pending = {"in": "", "out": ""}
    decoder = json.JSONDecoder()
    for time_ns, direction, text in chunks:
        buffer = (pending[direction] + text).lstrip()
        while buffer:
            try:
                message, end = decoder.raw_decode(buffer)
            except (ValueError, RecursionError):
                if "\n" not in buffer:  # half of a message, so far
                    break
                message, end = None, buffer.index("\n")
            yield time_ns, direction, message if isinstance(message, dict) else buffer[:end]
            buffer = buffer[end:].lstrip()
        pending[direction] = buffer


def _pair(time_ns: int, request: dict[str, Any], replies: dict[Any, tuple[int, dict[str, Any]]]) -> Exchange:
    received, message = replies.get(request.get("id"), (None, {}))
    return Exchange(
        command=str(request.get("execute", request.get("exec-oob"))),
        arguments=request.get("arguments", {}),
        sent_ns=time_ns,
        received_ns=received,
        reply=message.get("return"),
        error=message.get("error"),
    )
