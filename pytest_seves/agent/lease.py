# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose host this is: one run at a time, or any number of runs that all agree to share it.

A run has the host while one of its agents lives: each holds a lock (:mod:`~pytest_seves.agent.lease_file`),
and the kernel frees it with its process. What a lock cannot do:

* An agent that is stopped, or hangs in the kernel, keeps its lock. It gives no sign of life, and then another
  agent of the same account (or root's) takes the host over. The clock is the host's monotonic one.
* Should it wake up, it must not launch: a later lease has a higher fencing token. Only what our own account
  or root wrote counts there, so nobody else can steal a lease.
* What a former run left behind is killed before the next one begins: processes with its id in their
  environment, and descendants of its agents. Nobody else's.

What strangers hold of the host can only be counted while it is nobody's: an agent that takes it then counts
the SEV-ES ASIDs in use, and each later one takes over that count instead of counting our own guests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from typing import Any, Callable, Dict, Optional

from pytest_seves.agent import facts, lineage
from pytest_seves.agent.lease_file import LOCK_NAME, Entry, OwnFile, read_all
from pytest_seves.agent.locks import open_lock, try_lock
from pytest_seves.agent.loop import Loop

RUN_VARIABLE = "PYTEST_SEVES_RUN"
"""In the environment of all that an agent executes: ``RUN@DIRECTORY``, the run and where its agents meet.

The directory, for a run can have two hosts that are one machine, as model hosts are, and lets go of each by
itself.
"""
EXIT_STATUS = 6
"""Of an agent that ended because its lease was lost."""

_AGAIN_S = 0.05
_BUSY_S = 5.0
_BEATS = 5
"""Signs of life in the time that one counts."""

Done = Callable[[Dict[str, Any]], None]
Fail = Callable[[str, str, Dict[str, Any]], None]


class LeaseLost(Exception):
    """The host is no longer this run's."""


class Lease:
    """This agent's part in the lease of its run.

    :param directory: where the host's agents meet; the temporary directory unless told.
    """

    def __init__(self, loop: Loop, directory: Optional[str] = None) -> None:
        self._loop = loop
        self._directory = directory or tempfile.gettempdir()
        self._own: Optional[OwnFile] = None

    def acquire(self, done: Done, fail: Fail, timeout_s: float, **tenant: Any) -> None:
        """Answer ``{"token": n}`` once the host is the run's, or ``{"held": {...}}`` when it is not in time.

        :param tenant: run, user, machine, pid, shared and expiry_s (:class:`~.lease_file.Entry`).
        :raise ValueError: this agent has a lease already.
        """
        if self._own:
            raise ValueError("lease.acquire: this agent has a lease already")
        lock = open_lock(os.path.join(self._directory, LOCK_NAME))
        begin = time.monotonic()

        def attempt() -> None:
            holder, wait_s = None, max(timeout_s, _BUSY_S)  # others hold the lock for moments only
            if try_lock(lock, fcntl.LOCK_EX):
                try:
                    holder = self._take(**tenant)
                except (OSError, TypeError, ValueError) as error:
                    os.close(lock)
                    fail(type(error).__name__, f"the lease cannot be written down: {error}", {})
                    return
                fcntl.flock(lock, fcntl.LOCK_UN)
                if holder and holder.alive and not _takeable(holder):
                    wait_s = timeout_s
            if self._own:
                os.close(lock)
                done({"token": self._own.record["token"]})
            elif time.monotonic() - begin < wait_s:
                self._loop.after(_AGAIN_S, attempt)
            else:
                os.close(lock)
                done({"held": _shown(holder) if holder else None})

        attempt()

    def _take(self, run: str, shared: bool, expiry_s: float, **who: Any) -> Optional[Entry]:
        """Take the host, or say who is in the way: a run that has it, or whose last processes are dying."""
        entries = read_all(self._directory)
        others = [entry for entry in entries if entry.run != run]
        holders = [entry for entry in others if entry.alive and not _takeable(entry)]
        if holders and not (shared and all(entry.record["shared"] for entry in holders)):
            return holders[0]
        holding = {entry.run for entry in holders}
        over = [entry for entry in others if entry.run not in holding]
        former = [entry for entry in over if _ours(entry)]
        if lineage.kill_run(
            RUN_VARIABLE,
            {self._mark(entry.run): entry.uid for entry in former},
            {int(entry.record["agent"]) for entry in former if entry.alive},
        ):
            return former[0]
        mine = [entry.token for entry in entries if entry.run == run and entry.alive]
        token = mine[0] if mine else max((entry.token for entry in entries), default=0) + 1
        counted = [entry for entry in entries if entry.run in {run, *holding} and _trusted(entry)]
        asids = counted[0].record["es_asids"] if counted else facts.es_asids_in_use()
        record = {
            "run": run,
            "shared": shared,
            "expiry_s": expiry_s,
            "token": token,
            "es_asids": asids,
            **who,
        }
        self._own = OwnFile(self._directory, record)
        os.environ[RUN_VARIABLE] = self._mark(run)
        for entry in over:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.unlink(entry.path)
        self._beat_later(expiry_s)
        return None

    def _mark(self, run: str) -> str:
        return f"{run}@{os.path.realpath(self._directory)}"

    @property
    def es_asids(self) -> Optional[int]:
        """SEV-ES ASIDs in use when the first of the runs that have the host took it; None without a lease."""
        return int(self._own.record["es_asids"]) if self._own else None

    def _beat_later(self, expiry_s: float) -> None:
        """After all that waits to be read: who was stopped hears first what it was told meanwhile."""

        def due() -> None:
            self._loop.after(0, self._beat)

        self._loop.after(expiry_s / _BEATS, due)

    def _beat(self) -> None:
        """Say that all is well, if it is.

        :raise LeaseLost: another run has the host.
        """
        if self._own is None:
            return
        self.check()
        self._own.beat()
        self._beat_later(self._own.record["expiry_s"])

    def check(self) -> None:
        """Do nothing while the host is the run's, or no lease was ever asked for.

        :raise LeaseLost: another run has taken it over; says which.
        """
        if self._own is None:
            return
        token, shared = self._own.record["token"], self._own.record["shared"]
        later = [entry for entry in read_all(self._directory) if entry.token > token and _trusted(entry)]
        against = [entry for entry in later if not (shared and entry.record["shared"])]
        if not against and self._own.in_place:
            return
        by = "its file is gone"
        for entry in against or later:
            who = _shown(entry)
            by = f"{who['user']}@{who['machine']} has it (run {who['run']}, fencing token {entry.token})"
        raise LeaseLost(
            f"the lease of run {self._own.record['run']} (fencing token {token}) is lost: {by}. It had given"
            f" no sign of life for {self._own.record['expiry_s']:g} s: was its agent or the host stopped?"
        )

    def close(self) -> None:
        """Let go of the host."""
        if self._own:
            self._own.close()
            self._own = None


def _ours(entry: Entry) -> bool:
    """We may end what it started."""
    return os.geteuid() in (0, entry.uid)


def _takeable(entry: Entry) -> bool:
    """Its agent is there, and gives no sign of life."""
    return entry.expired and _ours(entry)


def _trusted(entry: Entry) -> bool:
    """Its owner can have taken the host from us: nobody else could, while our lock is held."""
    return entry.uid in (0, os.geteuid())


def _shown(entry: Entry) -> Dict[str, Any]:
    """What the controller tells people about who holds the host."""
    known = {key: entry.record[key] for key in ("run", "user", "machine", "pid", "agent", "shared")}
    held_s = (time.monotonic_ns() - int(entry.record["since_ns"])) / 1e9
    return {**known, "held_s": held_s, "expired": entry.expired}
