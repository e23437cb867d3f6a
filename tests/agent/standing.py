# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that stands for a VMM which lasts: it tells when it runs, and runs until it is ended."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """
import os, sys, time
with open(sys.argv[1], "w") as told:
    told.write(f"{os.getpid()} {os.getppid()}")
time.sleep(600)
"""
_LIMIT_S = 20.0
#: A conversation of which nothing is wanted.
QUIET: dict[str, Any] = {"questions": [], "paused": False, "paused_steps": [], "steps": [], "ends": "quit"}


class Standing:
    """One such program.

    :ivar request: the arguments of the request that launches it.
    """

    def __init__(self, directory: Path, number: int, **more: Any) -> None:
        fifo = directory / f"standing-{number}"
        os.mkfifo(fifo)
        self._told = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        argv = [sys.executable, "-c", _PROGRAM, str(fifo)]
        self.request: dict[str, Any] = {
            "argv": argv,
            "script": QUIET,
            "mode": "stop",
            "timeout_s": 60,
            **more,
        }

    def runs(self, within_s: float = _LIMIT_S) -> bool:
        """Whether it runs, or begins to in time."""
        return bool(select.select([self._told], [], [], within_s)[0])

    def pids(self) -> tuple[int, int]:
        """Its pid and its recorder's, once it runs."""
        assert self.runs(), "it was not launched"
        vmm, recorder = os.read(self._told, 100).split()
        return int(vmm), int(recorder)

    def close(self) -> None:
        """Listen no more."""
        os.close(self._told)
