# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to a VMM during a launch, on the host: no question waits for the way to the controller.

The whole is a generator: it yields what it waits for, and is sent whether that came about. Whatever comes of
a step is evidence. One deadline ends everything: the launch's, at which the VMM is killed.
"""

from __future__ import annotations

import base64
import math
import os
import re
import time
from typing import Callable, Generator, List, Optional, Sequence, Tuple, TypeVar

from pytest_seves.agent import files
from pytest_seves.agent.bounded import BoundedBytes
from pytest_seves.agent.gdbstub import ANSWER_S, GdbStub, StubError
from pytest_seves.agent.launch import Launch
from pytest_seves.agent.loop import Loop, Timer
from pytest_seves.agent.qmp import Answer, Qmp
from pytest_seves.agent.script import (
    NEVER,
    QUIT,
    Await,
    Command,
    Console,
    Dump,
    Gdb,
    Repeat,
    Script,
    Step,
    Type,
)

_LAST_WORDS_S = 2.0
_LOOK_S = 1.0
_ENDING_S = 1.0
_CONTINUED_S = 20.0  # from cont until every vCPU has run
_STOPPED_S = 0.1
#: Commands of a repetition that are under way at once.
_IN_FLIGHT = 64
_OVERLAP = 1024  # longer lines of the console are not searched for as a whole
_STATUS = Command("query-status", {})
_REGISTERS = Command("human-monitor-command", {"command-line": "info registers -a"})

_T = TypeVar("_T")
#: What is waited for, and until when on the monotonic clock.
Wait = Tuple[Callable[[], object], float]
Talk = Generator[Wait, bool, _T]


class _Broken(Exception):
    """The VMM ended, took too long or talked nonsense."""


class Conversation:
    """One launch's; `phase` names what was under way when the VMM did not play along.

    :param empty_file: makes an empty file of a name on this host, and returns its path.
    :param done: called once it is over, with the error if our side failed.
    :ivar dumps: what the VMM dumped, in order.
    """

    def __init__(
        self,
        loop: Loop,
        launch: Launch,
        script: Script,
        empty_file: Callable[[str], str],
        done: Callable[[Optional[OSError]], None],
    ) -> None:
        self.phase = "waiting for the QMP greeting"
        self.dumps: List[bytes] = []
        self._loop = loop
        self._launch = launch
        self._script = script
        self._empty_file = empty_file
        self._done = done
        self._qmp = Qmp(launch.qmp.send, script.awaited)
        self._stub = GdbStub(launch.gdb) if launch.gdb else None
        self._heard = 0  # events that steps have waited for
        self._timer: Optional[Timer] = None
        self._looking = False
        self._talk: Optional[Talk[None]] = self._hold()
        self._wait: Wait = next(self._talk)
        launch.qmp.on_data = self._said
        if launch.gdb:
            launch.gdb.on_data = self._stub_said
        launch.on_change = self._look

    def _said(self, data: bytes) -> None:
        if self._talk:
            self._qmp.feed(data)
            self._look()

    def _stub_said(self, data: bytes) -> None:
        if self._talk and self._stub:
            self._stub.feed(data)
            self._look()

    def _look(self) -> None:
        """Go on if what is waited for has come about, or will not any more."""
        if self._looking or not self._talk:
            return  # something that is being said just now was answered at once: looked at afterwards
        self._looking = True
        talk, error = self._talk, None
        try:
            while (came := bool(self._wait[0]())) or time.monotonic() >= self._wait[1]:
                self._wait = talk.send(came)
        except StopIteration:
            self._talk = None
        except OSError as caught:
            self._talk, error = None, caught
        finally:
            self._looking = False
        self._set_timer()
        if not self._talk:
            self._launch.qmp.finish()
            self._done(error)

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None
        if self._talk and self._wait[1] < math.inf:
            self._timer = self._loop.after(max(self._wait[1] - time.monotonic(), 0), self._look)

    # The conversation

    @property
    def _open(self) -> bool:
        return self._launch.qmp.open and not self._qmp.nonsense

    def _hold(self) -> Talk[None]:
        """Ask, let it run, ask again, take the steps, end it."""
        script, launch = self._script, self._launch
        try:
            yield from self._greeting()
            if script.paused:
                yield from self._ask()
                yield from self._take(script.paused_steps)
                if not self._open:
                    return  # it ended, or was killed at its deadline, while `phase` was under way
                yield from self._execute(Command("cont", {}))
            self.phase = "waiting for every vCPU to run"
            limit = time.monotonic() + _CONTINUED_S if script.paused else math.inf
            yield (lambda: launch.all_run or launch.ended), limit
            if launch.all_run:
                yield from self._ask()
                yield from self._take(script.steps)
                if self._open:
                    yield from self._finish()
                self.phase = ""
        except (_Broken, StubError) as error:
            if isinstance(error, StubError):
                self.phase += f": {error}"
            yield from self._last_words()
            # phase says what was under way; the transcript and the exit say the rest

    def _greeting(self) -> Talk[None]:
        yield (lambda: self._qmp.ready or not self._open), math.inf
        if not self._qmp.ready or not self._open:
            raise _Broken

    def _last_words(self) -> Talk[None]:
        """Where a VMM that still answers stands, and its vCPUs as far as it can tell."""
        if not self._open:
            return
        phase, limit = self.phase, time.monotonic() + _LAST_WORDS_S
        try:
            for question in (_STATUS, _REGISTERS):
                yield from self._execute(question, limit)
        except _Broken:
            pass  # it does not answer
        self.phase = phase

    def _ask(self) -> Talk[None]:
        yield from self._at_once(self._script.questions)

    def _take(self, steps: Sequence[Step]) -> Talk[None]:
        for step in steps:
            if isinstance(step, Gdb):
                yield from self._debug(step)
            elif isinstance(step, Repeat):
                yield from self._repeat(step)
            elif isinstance(step, Dump):
                yield from self._dump(step)
            elif isinstance(step, Console):
                yield from self._console(step)
            elif isinstance(step, Type):
                self.phase = f"typing {step.text.decode()!r} on the console"
                if not self._launch.type(step.text):
                    raise _Broken
            elif isinstance(step, Await):
                self.phase = f"waiting for {' or '.join(step.events)}"
                limit = time.monotonic() + step.timeout_s
                self._heard = yield from self._event(step.events, self._heard, limit)
            else:
                yield from self._execute(step)

    def _say(self, command: Command, keep: bool = False) -> str:
        if not self._open:
            raise _Broken
        return self._qmp.execute(command.name, command.arguments, keep)

    def _execute(self, command: Command, limit: float = math.inf) -> Talk[None]:
        self.phase = f"executing {command.name}"
        since = len(self._qmp.events)
        yield from self._answered(command, self._say(command), since, limit)

    def _answered(self, command: Command, number: str, since: int, limit: float) -> Talk[None]:
        self.phase = f"executing {command.name}"
        answer = yield from self._answer(number, limit)
        if answer is None:
            if command.name != QUIT and not command.until:  # it may close before it has answered
                raise _Broken
        elif answer.kind == "error":
            return  # an answer like any other: the transcript holds it
        if command.until:
            self.phase = f"waiting for {' or '.join(command.until)} after {command.name}"
            yield from self._event(command.until, since, limit)

    def _answer(self, number: str, limit: float) -> Talk[Optional[Answer]]:
        """Wait for an answer; None once the VMM has closed the conversation.

        :raise _Broken: it is none, or late.
        """
        came = yield (lambda: number in self._qmp.answers or not self._open), limit
        answer = self._qmp.answers.pop(number, None)
        if not came or (answer and not answer.kind):
            raise _Broken
        return answer

    def _event(self, names: Sequence[str], since: int, limit: float) -> Talk[int]:
        """Wait for an event; how many have been looked at then.

        A VMM that announces its end gets time for it: a question would disturb that. QEMU 10.0, asked then,
        was seen to end by SIGSEGV.
        """
        events = self._qmp.events

        def came() -> bool:
            return any(name in names for name in events[since:])

        if not (yield (lambda: came() or not self._open), limit):
            raise _Broken
        for seen, name in enumerate(events[since:], since + 1):
            if name in names:
                if name == "SHUTDOWN":
                    yield (lambda: not self._open), time.monotonic() + _ENDING_S
                return seen
        return len(events)

    def _repeat(self, step: Repeat) -> Talk[None]:
        commands = [*step.commands] * step.times
        for start in range(0, len(commands), _IN_FLIGHT):
            yield from self._at_once(commands[start : start + _IN_FLIGHT])

    def _at_once(self, commands: Sequence[Command]) -> Talk[None]:
        since = len(self._qmp.events)
        sent = [self._say(command) for command in commands]
        for command, number in zip(commands, sent):
            yield from self._answered(command, number, since, math.inf)

    def _dump(self, step: Dump) -> Talk[None]:
        """Into a file of ours, which takes what comes of it: no file is left by a VMM that refuses."""
        path = self._empty_file(f"dump-{self._launch.number}")
        where = {"paging": False, "begin": step.begin, "length": step.length, "protocol": f"file:{path}"}
        yield from self._execute(Command("dump-guest-memory", where))
        self.dumps.append(base64.b64decode(files.read(path)["data_b64"]))
        os.unlink(path)

    def _debug(self, step: Gdb) -> Talk[None]:
        self.phase = "talking to the gdbstub"
        stub = self._stub
        if stub is None:
            raise StubError("no socket was made for it")
        try:
            for packet in step.packets:
                self.phase = f"talking to the gdbstub: {packet}"
                limit = time.monotonic() + ANSWER_S
                stub.ask(packet)
                yield (lambda: stub.told), limit
                stub.take()
        finally:
            stub.leave()

    def _console(self, step: Console) -> Talk[None]:
        """Wait, and look now and then whether the guest still runs: one that has stopped says no more."""
        limit, stopped = time.monotonic() + step.timeout_s, False
        search = _Search(self._launch.console, step.pattern, fresh=step.fresh)
        self.phase = f"waiting for {step.pattern.pattern.decode()!r} on the console"
        while True:
            left = _STOPPED_S if stopped else max(min(_LOOK_S, limit - time.monotonic()), _STOPPED_S)
            yield (lambda: search.found() or self._launch.ended), time.monotonic() + left
            if search.found():
                return
            if stopped or time.monotonic() >= limit:
                raise _Broken
            answer = yield from self._answer(self._say(_STATUS, keep=True), math.inf)
            if answer is None or answer.kind != "return":
                raise _Broken
            stopped = isinstance(answer.value, dict) and answer.value.get("running") is False

    def _finish(self) -> Talk[None]:
        if self._script.steps:
            yield from self._execute(_STATUS)
        if self._script.ends == QUIT:
            yield from self._execute(Command(QUIT, {}))
        elif self._script.ends != NEVER:
            self.phase = f"ending it with {self._script.ends}"
            self._launch.kill(self._script.signal)


class _Search:
    """Looks for a pattern in what the console says; what is not kept of a flood is not searched."""

    def __init__(self, console: BoundedBytes, pattern: re.Pattern[bytes], *, fresh: bool) -> None:
        self._console = console
        self._pattern = pattern
        self._start = self._seen = console.total if fresh else 0
        self._found = False

    def found(self) -> bool:
        """Search what it has said since the last time, and a little before that."""
        if not self._found and (self._seen < self._console.total or not self._seen):
            start, self._seen = max(self._seen - _OVERLAP, self._start), self._console.total
            self._found = bool(self._pattern.search(self._console.since(start)))
        return self._found
