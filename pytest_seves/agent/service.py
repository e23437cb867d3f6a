# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: answers the controller's requests on stdin with frames on stdout, until stdin ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import signal
import sys
import time
from collections import deque
from typing import Any, Callable, NoReturn, Sequence

from pytest_seves.agent import calls, command, facts, files, health, lineage, provision
from pytest_seves.agent import program as steps
from pytest_seves.agent.admission import Admission
from pytest_seves.agent.asid_holder import AsidHolder
from pytest_seves.agent.frames import Decoder, FrameError, encode
from pytest_seves.agent.lease import EXIT_STATUS, Lease, LeaseLost
from pytest_seves.agent.loop import Loop, Timer
from pytest_seves.agent.observation import Observations
from pytest_seves.agent.turns import Turns

_QUEUE_HIGH = 8 << 20
"""Above so many unsent bytes no further request is read."""
_HEALTH_S = 10.0
_GUESTS = ("observe", "calls")

Done = Callable[[dict[str, Any]], None]


class _ChannelClosed(Exception):
    """The controller is gone."""


class Service:
    """One conversation. Everything that it started is gone when :meth:`run` returns.

    :param agent: the SHA-256 of the program, for the greeting.
    """

    def __init__(self, agent: str, stdin: int = 0, stdout: int = 1) -> None:
        self._agent = agent
        self._stdin = stdin
        self._stdout = stdout
        self._loop = Loop()
        self._decoder = Decoder()
        self._queue = bytearray()
        self._temp: files.TempDir | None = None
        self._lease = Lease(self._loop)
        self._turns = Turns(self._loop)
        self._admission = Admission(self._loop, self._turns)
        self._observations = Observations(
            self._loop, self._lease, self._turns, self._admission, self._guard, self._empty_file
        )
        self._holder: AsidHolder | None = None
        self._later: deque[Callable[[], None]] = deque()
        self._busy = 0
        self._heard = 0.0
        self._silence: Timer | None = None
        self._ops: dict[str, Callable[..., None]] = {
            "facts": self._facts,
            "exec": self._exec,
            "health": self._health,
            "calls": self._calls,
            "file.put": self._file_put,
            "file.read": self._file_read,
            "observe": self._observe,
            "wait": self._wait,
            "alone.begin": self._alone_begin,
            "alone.hold": self._alone_hold,
            "alone.end": self._alone_end,
            "lease.acquire": self._lease.acquire,
            "provision": self._provision,
        }

    def run(self) -> int:
        """Serve until the channel ends. The exit status: 0, 3: wrong frames, or that of a lost lease."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _terminated)
        lineage.adopt_orphans()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        status = 0
        try:
            self._loop.on_readable(self._stdin, self._readable)
            self._send({"hello": self._hello()})
            while True:
                self._loop.turn()
        except _ChannelClosed:
            pass
        except FrameError as error:
            status = 3
            _complain(f"the controller sent garbage: {error}: {error.data[:200]!r}")
        except LeaseLost as error:
            status = EXIT_STATUS
            _complain(str(error))
        finally:
            self._clean_up()
        return status

    def _hello(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "agent": self._agent,
            "pid": os.getpid(),
            "monotonic_ns": time.monotonic_ns(),
            "time_ns": time.time_ns(),
        }

    def _clean_up(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # one is enough
        self._loop.close()
        left = lineage.kill_descendants()
        if left:
            _complain(f"processes that SIGKILL did not end: {left}")
        if self._temp:
            self._temp.remove()
        self._lease.close()

    # The channel

    def _readable(self) -> None:
        try:
            data = os.read(self._stdin, 1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            raise _ChannelClosed from error
        if not data:
            raise _ChannelClosed
        self._heard = time.monotonic()
        for message in self._decoder.feed(data):
            self._dispatch(message)

    def _send(self, message: dict[str, Any]) -> None:
        self._queue += encode(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._queue:
                count = os.write(self._stdout, memoryview(self._queue)[: 1 << 18])
                del self._queue[:count]
                self._heard = time.monotonic()  # it takes what we send, if slowly
        except BlockingIOError:
            pass
        except OSError as error:
            raise _ChannelClosed from error
        self._loop.on_writable(self._stdout, self._flush if self._queue else None)
        self._loop.on_readable(self._stdin, self._readable if len(self._queue) < _QUEUE_HIGH else None)

    def _beat(self, silence_s: float) -> None:
        """The controller promises to be heard again within so many seconds; who breaks that is gone."""
        if self._silence:
            self._silence.cancel()
        left = self._heard + silence_s - time.monotonic()
        if left <= 0:
            _complain(f"no sign of the controller for {silence_s:g} s")
            raise _ChannelClosed
        self._silence = self._loop.after(left, lambda: self._look(silence_s))

    def _look(self, silence_s: float) -> None:
        """After what waits to be read: who was stopped hears first what it was told meanwhile."""
        self._silence = self._loop.after(0, lambda: self._beat(silence_s))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "beat" in message:
            self._beat(_promise(message))
            return
        number, op, args = message.get("id"), message.get("op"), message.get("args", {})
        if not isinstance(number, int) or not isinstance(op, str) or not isinstance(args, dict):
            raise FrameError("neither a request nor a sign of life", repr(message).encode())
        handler = self._ops.get(op)
        if handler is None:
            self._error(number, "ValueError", f"unknown operation {op!r}; known: {', '.join(self._ops)}", {})
            return

        def done(result: dict[str, Any]) -> None:
            self._answer(number, result)
            self._ended(op)

        def fail(kind: str, text: str, evidence: dict[str, Any]) -> None:
            self._error(number, kind, text, evidence)
            self._ended(op)

        def begin() -> None:
            self._busy += op in _GUESTS
            self._guard(fail, lambda: handler(done, fail, **args))

        if message.get("ahead"):
            self._later.append(begin)
            self._go_on()
        else:
            begin()

    def _ended(self, op: str) -> None:
        if op in _GUESTS:
            self._busy -= 1
            self._go_on()

    def _go_on(self) -> None:
        """With what was asked for ahead of its time: one after the other, and beside nothing else of ours."""
        if self._later and not self._busy:
            self._later.popleft()()

    def _guard(self, fail: command.Fail, work: Callable[[], None]) -> bool:
        """Do it; what a request may be wrong about is its answer. False: it failed."""
        try:
            work()
        except OSError as error:
            evidence = {"errno": error.errno, "path": error.filename, **getattr(error, "evidence", {})}
            fail(errno.errorcode.get(error.errno or 0, "OSError"), str(error), evidence)
        except (ValueError, TypeError, LeaseLost) as error:
            fail(type(error).__name__, str(error), {})
        else:
            return True
        return False

    def _answer(self, number: int, result: dict[str, Any]) -> None:
        try:
            self._send({"id": number, "ok": result})
        except ValueError as error:
            self._error(number, "TooLarge", f"the result does not fit a frame: {error}", {})

    def _error(self, number: int, kind: str, text: str, evidence: dict[str, Any]) -> None:
        self._send({"id": number, "error": {"kind": kind, "message": text, "evidence": evidence}})

    # The operations: each gets `done`, `fail` and the request's args by name

    def _facts(self, done: Done, fail: command.Fail, timeout_s: float = 30.0, **args: Any) -> None:
        def gathered(found: dict[str, Any]) -> None:
            done({**found, "es_asids_of_others": self._lease.es_asids})

        limit = _positive(timeout_s)
        command.call(self._loop, gathered, fail, function=facts.gather, args=args, timeout_s=limit)

    def _health(self, done: Done, fail: command.Fail, **args: Any) -> None:
        command.call(self._loop, done, fail, function=health.look, args=args, timeout_s=_HEALTH_S)

    def _calls(
        self,
        done: Done,
        fail: command.Fail,
        timeout_s: float,
        program: list[Any],
        side_by_side: int | None = None,
    ) -> None:
        """Run a program, which may take an ASID: it waits for a place as a launch does."""
        limit, args = _positive(timeout_s), {"program": steps.check(program)}
        self._lease.check()

        def ended(result: dict[str, Any]) -> None:
            self._admission.leave()
            done(result)

        def failed(kind: str, text: str, evidence: dict[str, Any]) -> None:
            self._admission.leave()
            fail(kind, text, evidence)

        def granted() -> None:
            command.call(self._loop, ended, failed, function=calls.run, args=args, timeout_s=limit)

        self._admission.enter(side_by_side, 0, granted, fail, limit)

    def _exec(self, done: Done, fail: command.Fail, timeout_s: float, **args: Any) -> None:
        command.run(self._loop, done, timeout_s=_positive(timeout_s), **args)

    def _directory(self) -> files.TempDir:
        if self._temp is None:
            self._temp = files.TempDir()
            self._temp.remove_stale()
        return self._temp

    def _empty_file(self, name: str) -> str:
        return self._directory().put(name, "", hashlib.sha256().hexdigest())

    def _file_put(self, done: Done, fail: command.Fail, **args: Any) -> None:
        done({"path": self._directory().put(**args)})

    def _file_read(self, done: Done, fail: command.Fail, **args: Any) -> None:
        done(files.read(**args))

    def _observe(
        self,
        done: Done,
        fail: command.Fail,
        timeout_s: float,
        files: Sequence[dict[str, Any]] = (),
        **args: Any,
    ) -> None:
        for file in files:  # that it needs and this agent has not: each as `file.put` takes it
            self._directory().put(**file)
        self._observations.observe(done, fail, timeout_s=_positive(timeout_s), **args)

    def _wait(self, done: Done, fail: command.Fail, launch: int, timeout_s: float) -> None:
        self._observations.wait(done, launch, _positive(timeout_s))

    def _alone_begin(self, done: Done, fail: command.Fail, timeout_s: float) -> None:
        self._lease.check()
        self._turns.begin_alone(lambda: done({}), fail, _positive(timeout_s))

    def _alone_hold(self, done: Done, fail: command.Fail, free: int | None) -> None:
        """Leave `free` SEV-ES ASIDs in the pool; None gives all back."""
        if not self._turns.alone:
            raise ValueError("alone.hold: only while this agent is alone on the host")

        def told(answer: dict[str, Any]) -> None:
            if "error" in answer:
                fail("NoAsids", answer["error"], {})
            else:
                done(answer)

        def take() -> None:
            self._holder = None if free is None else AsidHolder(self._loop, free, told)
            if free is None:
                done({"held": 0})

        if self._holder is None:
            take()
        elif free is not None and 0 <= free - self._holder.free <= min(self._holder.held, 0xFF):
            self._holder.leave(free, told)
        else:
            self._holder.release(take)

    def _alone_end(self, done: Done, fail: command.Fail) -> None:
        if not self._turns.alone:
            raise ValueError("alone.end: this agent is not alone")

        def end() -> None:
            self._holder = None
            self._turns.end_alone()
            done({})

        if self._holder is None:
            end()
        else:
            self._holder.release(end)

    def _provision(self, done: Done, fail: command.Fail, timeout_s: float, **args: Any) -> None:
        def ended(result: dict[str, Any]) -> None:
            if "failed" in result:
                fail(*result["failed"].values())
            else:
                done(result)

        limit = _positive(timeout_s)
        command.call(self._loop, ended, fail, function=provision.perform, args=args, timeout_s=limit)


def _positive(seconds: float) -> float:
    if not 0 < seconds < 1e6:
        raise ValueError(f"timeout_s {seconds!r}: wanted a positive number of seconds")
    return seconds


def _promise(message: dict[str, Any]) -> float:
    """Within how many seconds the controller is heard again.

    :raise FrameError: that is no time.
    """
    try:
        return _positive(message["beat"])
    except (TypeError, ValueError) as error:
        text = "beat: wanted a positive number of seconds"
        raise FrameError(text, repr(message).encode()) from error


def _terminated(number: int, frame: object) -> NoReturn:
    raise _ChannelClosed


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pytest-seves agent: {text}\n")
        sys.stderr.flush()
