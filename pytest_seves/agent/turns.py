# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose turn it is on this host: any number of launches at a time, or one agent alone.

What a launch gives back can only be counted while nobody else takes anything. Two locks on files that every
agent of the host uses: `use` is shared by launches and exclusive for who is alone; `gate` is held while one
waits for `use`, so that a stream of launches does not starve who wants to be alone. Locks end with their
process.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from typing import Any, Callable

from pytest_seves.agent.locks import open_lock, try_lock
from pytest_seves.agent.loop import Loop

_NAME = "pytest-seves.{}.lock"

Granted = Callable[[], None]
Fail = Callable[[str, str, dict[str, Any]], None]


class Turns:
    """This agent's part in it.

    :param directory: where the host's agents meet; the temporary directory unless told.
    """

    def __init__(self, loop: Loop, directory: str | None = None) -> None:
        self.alone = False
        self._loop = loop
        self._directory = directory or tempfile.gettempdir()
        self._sharers = 0
        self._use = -1

    def share(self, granted: Granted, fail: Fail, timeout_s: float) -> None:
        """Call `granted` once guests may be launched here; :meth:`give_back` once for each."""
        if self.alone or self._sharers:
            self._sharers += 1
            granted()
            return

        def shared() -> None:
            self._sharers += 1
            granted()

        self._take(fcntl.LOCK_SH, shared, fail, timeout_s)

    def give_back(self) -> None:
        """One launch less."""
        self._sharers -= 1
        if not self._sharers and not self.alone:
            self._release()

    def begin_alone(self, granted: Granted, fail: Fail, timeout_s: float) -> None:
        """Call `granted` once no other agent launches, and none will until :meth:`end_alone`.

        :raise ValueError: this agent is alone already, or has a launch under way.
        """
        if self.alone or self._sharers:
            raise ValueError("this agent is alone already, or has launches under way")

        def exclusive() -> None:
            self.alone = True
            granted()

        self._take(fcntl.LOCK_EX, exclusive, fail, timeout_s)

    def end_alone(self) -> None:
        """Let the others in again."""
        self.alone = False
        if not self._sharers:
            self._release()

    def _release(self) -> None:
        os.close(self._use)
        self._use = -1

    def _take(self, how: int, granted: Granted, fail: Fail, timeout_s: float) -> None:
        gate, use = open_lock(self._path("gate")), open_lock(self._path("use"))
        through = False

        def attempt() -> bool:
            nonlocal through
            through = through or try_lock(gate, fcntl.LOCK_EX)
            if not through or not try_lock(use, how):
                return False
            os.close(gate)
            if self._sharers:  # another launch of ours waited too, and was first
                os.close(use)
            else:
                self._use = use
            granted()
            return True

        def late() -> None:
            os.close(gate)
            os.close(use)
            lock = self._path("use")
            text = f"other runs launch guests on this host: {lock} was not free for {timeout_s:g} s"
            fail("Busy", text, {"lock": lock, "timeout_s": timeout_s})

        self._loop.poll(attempt, late, timeout_s)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, _NAME.format(name))
