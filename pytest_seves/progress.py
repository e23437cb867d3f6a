# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person who waits wants to know: what is being done, how far it is, for how long.

Work that is done within two seconds is not mentioned. What takes longer is told on a line that is written
over again (`live`), and erased at the end, or else as whole lines, ever less often.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_LIVE_S = 0.25
_LEAST_OFTEN_S = 60.0
_MIB = 1 << 20


@dataclass
class Work:
    """Something that takes its time.

    :ivar what: names host and work: ``lab1: upload of OVMF.fd``.
    :ivar size: bytes that it moves, 0 if it moves none.
    :ivar done: says how many of them it has moved.
    """

    what: str
    size: int
    done: Callable[[], int]
    started: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)
    told: bool = False

    def now(self) -> str:
        """How far it is."""
        moved = f"{self.done() / _MIB:.1f} of {self.size / _MIB:.1f} MiB, " if self.size else ""
        return f"{self.what}: {moved}{self.elapsed}"

    @property
    def elapsed(self) -> str:
        """For how long it has been going on."""
        return f"{time.monotonic() - self.started:.0f} s"


class Progress:
    """Tells of work that goes on, from a thread of its own.

    :param write: takes text for whoever watches, line ends included; without it nothing is told.
    :param live: it goes to a terminal, where a line can be written over.
    :param after_s: work that ends sooner is not told of.
    """

    def __init__(
        self, write: Callable[[str], None] | None = None, *, live: bool = False, after_s: float = 2.0
    ) -> None:
        self._write = write
        self._live = live
        self._after_s = after_s

    @contextmanager
    def work(self, what: str, size: int = 0, done: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Tell of what the block does while it does it; it must not be nested."""
        if self._write is None:
            yield
            return
        work = Work(what, size, done)
        teller = threading.Thread(target=self._tell, args=(work, self._write), name="progress", daemon=True)
        teller.start()
        outcome = "given up"
        try:
            yield
            outcome = "done"
        finally:
            work.ended.set()
            teller.join()
            if work.told and not self._live:
                self._write(f"{work.what}: {outcome} after {work.elapsed}\n")

    def _tell(self, work: Work, write: Callable[[str], None]) -> None:
        wait_s, shown = self._after_s, ""
        while not work.ended.wait(wait_s):
            work.told = True
            if self._live:
                before, shown = shown, work.now()[: shutil.get_terminal_size().columns - 1]
                write(f"\r{shown:<{len(before)}}")
                wait_s = _LIVE_S
            else:
                write(f"{work.now()}\n")
                wait_s = min(2 * wait_s, _LEAST_OFTEN_S)
        if shown:
            write(f"\r{'':<{len(shown)}}\r")


SILENT = Progress()
"""Tells nothing."""
