# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the recorder writes: the timeline (one JSON line per ioctl) and its milestones."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import Any

from pytest_seves.agent.capture import Call

_FULL = 1 << 16


def _write(fd: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(fd, data) :]


class Journal:
    """Collects lines while the VMM is busy and writes them when it is not.

    A recorder that is killed loses what it has not written, so the tracer flushes after each SEV command, at
    milestones and whenever nothing happens. Writing raises BrokenPipeError when nobody reads any more.
    """

    def __init__(self, out_fd: int, status_fd: int) -> None:
        self._out_fd = out_fd
        self._status_fd = status_fd
        self._calls: deque[Call] = deque()
        self._lines: list[str] = []
        self._size = 0
        self._milestones: list[str] = []

    def line(self, value: dict[str, Any]) -> None:
        """A line of the timeline that is no event; written at once."""
        self.flush()
        _write(self._out_fd, json.dumps(value, separators=(",", ":")) + "\n")

    def event(self, call: Call) -> None:
        """Take a finished call; what it read is already in it."""
        self._calls.append(call)

    def milestone(self, value: dict[str, Any]) -> None:
        """One line for the agent, written with the next flush."""
        self._milestones.append(json.dumps(value) + "\n")

    def work(self) -> bool:
        """Do a small part of what is left to do; False: only the writing is left."""
        if not self._calls:
            return False
        line = self._calls.popleft().line()
        self._lines.append(line)
        self._size += len(line)
        if self._size > _FULL:
            self._write_lines()
        return True

    @property
    def unwritten(self) -> bool:
        """Whether anything would be lost now."""
        return bool(self._lines or self._calls or self._milestones)

    def flush(self) -> None:
        """Write everything, the evidence before the milestones that rest on it."""
        while self.work():
            pass
        self._write_lines()
        if self._milestones:
            text = "".join(self._milestones)
            self._milestones.clear()
            _write(self._status_fd, text)

    def _write_lines(self) -> None:
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            self._size = 0
            _write(self._out_fd, text)
