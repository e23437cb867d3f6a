# SPDX-License-Identifier: GPL-2.0-or-later
"""How many guests run side by side on this host, of whichever agents: each holds one of so many locks.

A guest more than there are ASIDs for, or memory, would be refused, and the refusal be taken for the VMM's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from typing import Any, Callable, Dict, List, Optional

from pytest_seves.agent.locks import open_lock, try_lock
from pytest_seves.agent.loop import Loop

_NAME = "pytest-seves.place-{}.lock"
_MEMINFO = "/proc/meminfo"

Granted = Callable[[], None]
Fail = Callable[[str, str, Dict[str, Any]], None]


class Places:
    """This agent's guests among all of the host.

    :param directory: where the host's agents meet; the temporary directory unless told.
    """

    def __init__(self, loop: Loop, directory: Optional[str] = None) -> None:
        self._loop = loop
        self._directory = directory or tempfile.gettempdir()
        self._held: List[int] = []

    def take(
        self, most: Optional[int], memory_mib: int, granted: Granted, fail: Fail, timeout_s: float
    ) -> None:
        """Call `granted` once fewer than `most` guests run, and memory for one more is available.

        :meth:`give_back` once for each.

        :param most: None: any number.
        """

        def attempt() -> bool:
            place = self._free(most) if memory_mib <= _available_mib() else None
            if place is None:
                return False
            self._held.append(place)
            granted()
            return True

        def late() -> None:
            text = f"no place for one more guest within {timeout_s:g} s: {most} may run side by side, and"
            text += f" {_available_mib()} MiB of memory are available; wanted {memory_mib}"
            fail("Busy", text, {"side_by_side": most, "memory_mib": memory_mib})

        self._loop.poll(attempt, late, timeout_s)

    def give_back(self) -> None:
        """One guest less."""
        place = self._held.pop()
        if place >= 0:
            os.close(place)

    def _free(self, most: Optional[int]) -> Optional[int]:
        """A lock that nobody held, or -1 where none is needed."""
        if most is None:
            return -1
        for number in range(most):
            lock = open_lock(os.path.join(self._directory, _NAME.format(number)))
            if try_lock(lock, fcntl.LOCK_EX):
                return lock
            os.close(lock)
        return None


def _available_mib() -> int:
    """Memory that can be had without swapping (proc(5), MemAvailable)."""
    with open(_MEMINFO, "rb") as file:
        return int(file.read().partition(b"MemAvailable:")[2].split(None, 1)[0]) // 1024
