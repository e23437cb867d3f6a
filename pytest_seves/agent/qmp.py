# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's side of QMP, as messages: what a VMM says is fed in, what to say to it is handed out.

Source: QEMU, docs/interop/qmp-spec.rst. The VMM greets, capabilities are negotiated, commands have an id that
their answer repeats, and events come in between.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any, Callable, Collection

#: A longer line is nonsense.
LONGEST = 10 << 20
#: More events that one waits for are nonsense, too.
MOST_EVENTS = 1 << 16


class _Nonsense(Exception):
    """What came is no QMP."""


@dataclass(frozen=True)
class Answer:
    """What a command was answered with.

    :ivar kind: "return" or "error", or "" for neither.
    :ivar value: what it returned, where that was wanted.
    """

    kind: str
    value: Any = None


class Qmp:
    """One conversation.

    :param send: takes what is to be said to the VMM.
    :param wanted: names of the events that are remembered.
    :ivar ready: the VMM has greeted, and capabilities are negotiated.
    :ivar nonsense: why what the VMM says is not listened to any more, or empty.
    :ivar events: names of the wanted events, in order.
    :ivar answers: by the command's id; who waits for one takes it out.
    """

    def __init__(self, send: Callable[[bytes], None], wanted: Collection[str]) -> None:
        self.ready = False
        self.nonsense = ""
        self.events: list[str] = []
        self.answers: dict[str, Answer] = {}
        self._send = send
        self._wanted = frozenset(wanted)
        self._greeted = False
        self._line = bytearray()
        self._numbers = itertools.count(1)
        self._asked: dict[str, bool] = {}

    def execute(self, command: str, arguments: dict[str, Any], keep: bool = False) -> str:
        """Say a command; its id.

        :param keep: what it returns is of interest.
        """
        number = f"{next(self._numbers):05d}"
        self._asked[number] = keep
        self._say({"execute": command, "arguments": arguments, "id": number})
        return number

    def _say(self, message: dict[str, Any]) -> None:
        self._send(json.dumps(message, separators=(",", ":")).encode())

    def feed(self, data: bytes) -> None:
        """Take what the VMM said; it may end within a line."""
        if self.nonsense:
            return
        start = len(self._line)
        self._line += data
        try:
            while (end := self._line.find(b"\n", start)) >= 0:
                line = bytes(self._line[:end])
                del self._line[: end + 1]
                start = 0
                self._take(line)
            if len(self._line) > LONGEST:
                raise _Nonsense(f"a line of more than {LONGEST} bytes")
        except _Nonsense as error:
            self.nonsense = str(error)
            self._line.clear()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _Nonsense(f"{line[:80]!r} is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise _Nonsense(f"{line[:80]!r} is no object")
        if not self._greeted:
            self._greet(message)
        elif "event" in message:
            self._event(message["event"])
        elif not self.ready:
            if "return" not in message or "error" in message:
                raise _Nonsense(f"{line[:80]!r}: wanted the answer to qmp_capabilities")
            self.ready = True
        else:
            self._answer(message)

    def _greet(self, message: dict[str, Any]) -> None:
        greeting = message.get("QMP")
        greeting = greeting if isinstance(greeting, dict) else {}
        capabilities = greeting.get("capabilities")
        if not isinstance(capabilities, list) or not isinstance(greeting.get("version"), dict):
            raise _Nonsense("wanted a greeting with version and capabilities")
        self._greeted = True
        arguments = {"enable": ["oob"]} if "oob" in capabilities else {}
        self._say({"execute": "qmp_capabilities", "arguments": arguments})

    def _event(self, name: Any) -> None:
        if isinstance(name, str) and name in self._wanted:
            if len(self.events) == MOST_EVENTS:
                raise _Nonsense(f"more than {MOST_EVENTS} events")
            self.events.append(name)

    def _answer(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if not isinstance(number, str) or number not in self._asked:
            if "error" in message and "id" not in message:
                raise _Nonsense(f"it did not understand what it was told: {str(message)[:80]}")
            return  # answers with an unknown id are to be dropped
        keep = self._asked.pop(number)
        kind = "error" if "error" in message else "return" if "return" in message else ""
        self.answers[number] = Answer(kind, message.get("return") if keep else None)
