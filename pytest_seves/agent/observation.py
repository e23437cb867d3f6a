# SPDX-License-Identifier: GPL-2.0-or-later
"""A launch from its request to its answer: a place for it, the VMM, the conversation, its end."""

from __future__ import annotations

import base64
import itertools
import time
from typing import Any, Callable, Dict, List, Optional

from pytest_seves.agent import command, usage
from pytest_seves.agent.admission import Admission
from pytest_seves.agent.conversation import Conversation
from pytest_seves.agent.launch import Launch
from pytest_seves.agent.lease import Lease
from pytest_seves.agent.loop import Loop
from pytest_seves.agent.script import NEVER, load
from pytest_seves.agent.turns import Turns

#: For a VMM to end by itself, and for one that did not play along.
_ENDING_S, _STUCK_S = 10.0, 2.0
_SETTLE_S = 3.0
_USAGE_S = 10.0

Done = Callable[[Dict[str, Any]], None]
Guard = Callable[[command.Fail, Callable[[], None]], bool]


class Observations:
    """All launches of an agent.

    :param guard: does something; what a request is wrong about becomes its answer, and False is returned.
    :param empty_file: makes an empty file of a name, and returns its path.
    """

    def __init__(
        self,
        loop: Loop,
        lease: Lease,
        turns: Turns,
        admission: Admission,
        guard: Guard,
        empty_file: Callable[[str], str],
    ) -> None:
        self.loop = loop
        self.lease = lease
        self.turns = turns
        self.admission = admission
        self.guard = guard
        self.empty_file = empty_file
        self.numbers = itertools.count(1)
        #: Launches that run on after their conversation.
        self.kept: Dict[int, Observation] = {}

    def observe(
        self,
        done: Done,
        fail: command.Fail,
        *,
        timeout_s: float,
        side_by_side: Optional[int] = None,
        memory_mib: int = 0,
        **request: Any,
    ) -> None:
        """Launch a VMM, have the conversation, end it, and answer with all that is known.

        A launch whose script never ends it is answered for when the conversation is over, with its number.

        :param timeout_s: for a turn, for a place, and for the launch.
        """
        observation = Observation(self, done, fail, timeout_s=timeout_s, **request)
        observation.begin(side_by_side, memory_mib)

    def wait(self, done: Done, launch: int, timeout_s: float) -> None:
        """Answer once a launch that runs on has ended, or late.

        :raise ValueError: there is none of that number.
        """
        if launch not in self.kept:
            raise ValueError(f"launch {launch!r}: none that runs on; those are {list(self.kept)}")
        self.kept[launch].wait(done, timeout_s)


class Observation:
    """One of them.

    :param usage: tell what guests hold of the host before and after, too; only while this agent is alone.
    """

    def __init__(
        self,
        all_: Observations,
        done: Done,
        fail: command.Fail,
        *,
        timeout_s: float,
        script: Any,
        usage: bool = False,
        **launch: Any,
    ) -> None:
        if usage and not all_.turns.alone:
            raise ValueError("usage: only while this agent is alone on the host")
        self._all = all_
        self._done = done
        self._fail = fail
        self._timeout_s = timeout_s
        self._script = load(script)
        self._given = launch
        self._counts: Optional[List[Dict[str, Any]]] = [] if usage else None
        self._launch: Launch
        self._talk: Conversation
        self._over = self._gone = False  # the conversation; the VMM with its recorder
        self._failure: Optional[OSError] = None
        self._waiters: List[Callable[[], None]] = []

    def begin(self, side_by_side: Optional[int], memory_mib: int) -> None:
        """Wait for a turn and a place, and launch."""

        def granted() -> None:
            if not self._all.guard(self._fail, self._start):
                self._all.admission.leave()

        enter = (side_by_side, memory_mib, granted, self._fail, self._timeout_s)
        self._count(lambda: self._all.admission.enter(*enter))

    def _count(self, then: Callable[[], None]) -> None:
        """Go on once it is known what guests hold of the host, if that is of interest."""
        counts = self._counts
        if counts is None:
            then()
            return

        def counted(now: Dict[str, Any]) -> None:
            counts.append(now)
            then()

        args = {"wanted": counts[0], "settle_s": _SETTLE_S} if counts else {}
        limit = {"timeout_s": _USAGE_S + _SETTLE_S}
        command.call(self._all.loop, counted, self._fail, function=usage.usage, args=args, **limit)

    def _start(self) -> None:
        self._all.lease.check()
        loop, given = self._all.loop, {**self._given, "timeout_s": self._timeout_s, "on_end": self._ended}
        self._launch = Launch(next(self._all.numbers), loop, **given)
        self._talk = Conversation(loop, self._launch, self._script, self._all.empty_file, self._talked)

    def _talked(self, failure: Optional[OSError]) -> None:
        """The conversation is over."""
        self._over, self._failure = True, failure
        left = max(self._launch.deadline - time.monotonic(), 0.1)
        if failure:
            self._launch.destroy()
        elif self._script.ends == NEVER:
            self._all.kept[self._launch.number] = self
            self._done({"launch": self._launch.number, "phase": self._talk.phase, "left_s": left})
        else:
            self._launch.destroy_after(min(left, _STUCK_S if self._talk.phase else _ENDING_S))
        self._finish()

    def _ended(self) -> None:
        """The VMM and its recorder are gone."""
        self._gone = True
        self._all.admission.leave()
        self._finish()

    def _finish(self) -> None:
        if not self._over or not self._gone:
            return
        if self._failure:
            self._all.guard(self._fail, self._refuse)
        elif self._script.ends == NEVER:
            for waiter in self._waiters:
                waiter()
        else:
            self._count(self._answer)

    def _refuse(self) -> None:
        if self._failure:
            raise self._failure

    def _answer(self) -> None:
        dumps = [base64.b64encode(dump).decode() for dump in self._talk.dumps]
        told = {"phase": self._talk.phase, "dumps": dumps, "usage": self._counts}
        self._done({**self._launch.everything(), **told})

    def wait(self, done: Done, timeout_s: float) -> None:
        """Answer once it has ended, or late."""
        waiting = [done]

        def answer() -> None:
            if waiting:
                waiting.pop()({"ended": self._gone})

        if self._gone:
            answer()
            return
        self._waiters.append(answer)
        self._all.loop.after(timeout_s, answer)
