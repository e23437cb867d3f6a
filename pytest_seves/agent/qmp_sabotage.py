# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that answers QMP wrongly, made on the way between it and the controller.

A rule names a command and what becomes of it: ``answer`` is given in the VMM's place, which never sees the
command; ``replace`` is a regular expression and a text that take effect on the VMM's own answer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Iterable, Optional

_KEYS = {"name", "command", "argument", "answer", "replace"}


@dataclass(frozen=True)
class QmpRule:
    """One rule; exactly one of `answer` and `replace` is not None.

    :param argument: a text that the command's arguments (as JSON) must contain.
    """

    name: str
    command: str
    argument: str
    answer: Optional[dict[str, Any]]
    replace: Optional[tuple[re.Pattern[str], str]]

    def matches(self, request: dict[str, Any]) -> bool:
        """Whether the rule is about this command."""
        return request.get("execute") == self.command and self.argument in json.dumps(
            request.get("arguments", {})
        )


class QmpSaboteur:
    """The rules of one conversation."""

    def __init__(self, rules: Iterable[QmpRule]) -> None:
        self._rules = tuple(rules)
        self._inward = ""
        self._outward = b""
        self._altered: dict[str, QmpRule] = {}
        self._decoder = json.JSONDecoder()

    def towards_vmm(self, data: bytes) -> list[tuple[bytes, Optional[bytes]]]:
        """Whole messages of the controller's, each with the answer to give in the VMM's place, if any."""
        messages: list[tuple[bytes, Optional[bytes]]] = []
        self._inward += data.decode("utf-8", "surrogateescape")
        while self._inward.strip():
            start = len(self._inward) - len(self._inward.lstrip())
            try:
                request, end = self._decoder.raw_decode(self._inward, start)
            except ValueError:
                break  # half of a message, so far
            text, self._inward = self._inward[:end], self._inward[end:]
            messages.append((text.encode("utf-8", "surrogateescape"), self._answer(request)))
        return messages

    def _answer(self, request: dict[str, Any]) -> Optional[bytes]:
        rule = next((rule for rule in self._rules if rule.matches(request)), None)
        if rule is None:
            return None
        if rule.answer is None:
            self._altered[json.dumps(request.get("id"))] = rule
            return None
        return json.dumps({**rule.answer, "id": request.get("id")}).encode() + b"\r\n"

    def from_vmm(self, data: bytes) -> bytes:
        """What the controller gets of what the VMM said; whole lines."""
        *lines, self._outward = (self._outward + data).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def _line(self, line: bytes) -> bytes:
        if not self._altered:
            return line
        try:
            identifier = json.dumps(json.loads(line).get("id"))
        except (ValueError, AttributeError):
            return line
        rule = self._altered.pop(identifier, None)
        if rule is None or rule.replace is None:
            return line
        pattern, text = rule.replace
        return pattern.sub(text, line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def load(rules: list[dict[str, Any]]) -> list[QmpRule]:
    """Check rules as they come from JSON.

    :raise ValueError: an unknown key, a missing one, both or none of ``answer`` and ``replace``.
    """
    return [_load(number, rule) for number, rule in enumerate(rules)]


def _load(number: int, written: dict[str, Any]) -> QmpRule:
    name = written.get("name")
    if not isinstance(name, str) or not isinstance(written.get("command"), str):
        raise ValueError(f"QMP rule {number}: wanted a name and a command, got {written!r}")
    if unknown := set(written) - _KEYS:
        raise ValueError(f"QMP rule {name!r}: unknown {sorted(unknown)}")
    if ("answer" in written) == ("replace" in written):
        raise ValueError(f"QMP rule {name!r}: wanted one of answer and replace")
    replace = None
    if "replace" in written:
        pattern, text = written["replace"]
        try:
            replace = re.compile(pattern), str(text)
        except re.error as error:
            raise ValueError(f"QMP rule {name!r}: {pattern!r} is no regular expression: {error}") from error
    return QmpRule(name, written["command"], written.get("argument", ""), written.get("answer"), replace)
