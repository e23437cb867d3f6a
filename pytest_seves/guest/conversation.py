# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to a VMM during a launch: questions, the steps of its specification, and how it is ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from . import qemu
from .gdbstub import GdbStub, StubError
from .spec import NEVER, GuestSpec
from .steps import Await, Console, Dump, Gdb, Qmp, Repeat, Step, hmp

if TYPE_CHECKING:
    from pytest_seves.host.client import AgentClient

#: Asked of every guest, before it runs (when it was started paused) and while it runs.
QUESTIONS = ("query-status", "query-sev", "query-sev-launch-measure", "query-sev-capabilities")
END_GRACE_S = 10.0
_LAST_WORDS_S = 2.0
_LOOK_S = 1.0
_ENDING_S = 1.0
_CONTINUED_S = 20.0  # from cont until every vCPU has run
#: Commands of a repetition that are under way at once.
_IN_FLIGHT = 64
_T = TypeVar("_T")


class Conversation:
    """One launch's; `phase` names what was under way when the VMM did not play along.

    :ivar number: of the launch, on the agent.
    :ivar deadline: on the monotonic clock.
    """

    def __init__(self, client: AgentClient, number: int, deadline: float) -> None:
        self._client = client
        self.number = number
        self.deadline = deadline
        self.phase = "waiting for the QMP greeting"
        #: What the VMM dumped, in order.
        self.dumps: list[bytes] = []

    async def hold(self, monitor: socket.socket, spec: GuestSpec) -> None:
        """Ask, let it run, ask again, take the steps, end it."""
        peer = QMPClient(f"launch-{self.number}")
        peer.logger.setLevel(logging.CRITICAL)  # a VMM that dies is evidence, not news for the log
        try:
            await self._connect(peer, monitor)
            if spec.paused:
                await self._ask(peer)
                await self._take(peer, spec.paused_steps)
                if peer.runstate is not Runstate.RUNNING:
                    return  # it ended, or was killed at its deadline, while `phase` was under way
                await self._execute(peer, Qmp("cont"))
            self.phase = "waiting for every vCPU to run"
            if await asyncio.to_thread(self._running, _CONTINUED_S if spec.paused else None):
                await self._ask(peer)
                await self._take(peer, spec.steps)
                if peer.runstate is Runstate.RUNNING:
                    await self._finish(peer, spec.ends, asked_again=bool(spec.steps))
                self.phase = ""
        except (TimeoutError, QMPError, OSError, EOFError, StubError) as error:
            if isinstance(error, StubError):
                self.phase += f": {error}"
            await self._last_words(peer)
            return  # phase says what was under way; the transcript and the exit say the rest
        finally:
            await self._goodbye(peer)

    async def _connect(self, peer: QMPClient, monitor: socket.socket) -> None:
        try:
            await self._within(peer.connect(monitor))
        except AssertionError as error:  # qemu.qmp 0.0.3 asserts after the greeting that it is connected
            raise EOFError("the VMM closed its monitor as soon as it had answered") from error

    async def _last_words(self, peer: QMPClient) -> None:
        """Where a VMM that still answers stands, and its vCPUs as far as it can tell."""
        if peer.runstate is not Runstate.RUNNING:
            return
        phase, limit = self.phase, time.monotonic() + _LAST_WORDS_S
        self.deadline = max(self.deadline, limit)
        with suppress(TimeoutError, QMPError, OSError, EOFError):
            for question in (Qmp("query-status"), hmp("info registers -a")):
                await asyncio.wait_for(self._execute(peer, question), limit - time.monotonic())
        self.phase = phase

    async def _ask(self, peer: QMPClient) -> None:
        """All questions at once: answers come in order, and a distant host costs one round trip."""
        asked = (self._execute(peer, Qmp(question)) for question in QUESTIONS)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            if answer is not None:
                self.phase = f"executing {question}"
                raise answer

    async def _take(self, peer: QMPClient, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Gdb):
                await self._debug(peer, step)
            elif isinstance(step, Repeat):
                await self._repeat(peer, step)
            elif isinstance(step, Dump):
                await self._dump(peer, step)
            elif isinstance(step, Console):
                await self._read_console(peer, step)
            elif isinstance(step, Await):
                self.phase = f"waiting for {' or '.join(step.events)}"
                await asyncio.wait_for(self._until(peer, peer.events, step.events), step.timeout_s)
            else:
                await self._execute(peer, step)

    async def _execute(self, peer: QMPClient, step: Qmp) -> None:
        self.phase = f"executing {step.command}"
        listener = EventListener(step.until)
        with peer.listen(listener) if step.until else nullcontext():
            try:
                await self._within(peer.execute(step.command, json.loads(step.arguments)))
            except ExecuteError:
                return  # an answer like any other: the transcript holds it
            except ExecInterruptedError:
                if step.command != "quit" and not step.until:  # it may close before it has answered
                    raise
            if step.until:
                self.phase = f"waiting for {' or '.join(step.until)} after {step.command}"
                await self._until(peer, listener, step.until)

    async def _until(self, peer: QMPClient, listener: EventListener, names: Sequence[str]) -> None:
        """Wait for an event. A VMM that announces its end gets time for it: a question would disturb that.

        QEMU 10.0, asked then, was seen to end by SIGSEGV.
        """
        if await self._within(_event_or_end(peer, listener, names)) == "SHUTDOWN":
            with suppress(TimeoutError):
                await asyncio.wait_for(_end(peer), _ENDING_S)

    async def _repeat(self, peer: QMPClient, step: Repeat) -> None:
        commands = [*step.steps] * step.times
        for start in range(0, len(commands), _IN_FLIGHT):
            batch = commands[start : start + _IN_FLIGHT]
            await asyncio.gather(*(self._execute(peer, command) for command in batch))

    async def _dump(self, peer: QMPClient, step: Dump) -> None:
        """Into a file of the agent's, which takes what comes of it: no file is left by a VMM that refuses."""
        empty = {"data_b64": "", "sha256": hashlib.sha256().hexdigest()}
        request = {"name": f"dump-{self.number}", **empty}
        path = (await asyncio.to_thread(self._client.call, "file.put", request))["path"]
        where = {"paging": False, "begin": step.begin, "length": step.length, "protocol": f"file:{path}"}
        await self._execute(peer, Qmp("dump-guest-memory", json.dumps(where)))
        told = await asyncio.to_thread(self._client.call, "file.read", {"path": path})
        self.dumps.append(base64.b64decode(told["data_b64"]))

    async def _debug(self, peer: QMPClient, step: Gdb) -> None:
        await self._execute(peer, hmp(qemu.START_GDBSTUB))
        self.phase = "talking to the gdbstub"
        await asyncio.to_thread(self._exchange, step.packets)

    def _exchange(self, packets: Sequence[str]) -> None:
        with self._client.stream(f"{self.number}.gdb") as peer:
            stub = GdbStub(peer, self.deadline)
            for packet in packets:
                self.phase = f"talking to the gdbstub: {packet}"
                stub.exchange(packet)

    async def _finish(self, peer: QMPClient, ends: str, *, asked_again: bool) -> None:
        if asked_again:
            await self._execute(peer, Qmp("query-status"))
        if ends == NEVER:
            return
        if ends == "quit":
            await self._execute(peer, Qmp("quit"))
            return
        self.phase = f"ending it with {ends}"
        request = {"launch": self.number, "signal": int(signal.Signals[ends])}
        await asyncio.to_thread(self._client.call, "kill", request)

    async def _read_console(self, peer: QMPClient, step: Console) -> None:
        """Wait, and look now and then whether the guest still runs: one that has stopped says no more."""
        limit = min(self.deadline, time.monotonic() + step.timeout_s)
        start, stopped = None if step.fresh else 0, False
        while True:
            self.phase = f"waiting for {step.pattern!r} on the console"
            left = 0.1 if stopped else max(min(_LOOK_S, limit - time.monotonic()), 0.1)
            wanted = {"until": "console", "pattern": step.pattern, "start": start}
            request = {"launch": self.number, "timeout_s": left, **wanted}
            told = await asyncio.to_thread(self._client.call, "wait", request, left + END_GRACE_S)
            if told["reached"]:
                return
            if stopped or time.monotonic() >= limit:
                raise TimeoutError
            start, status = told["start"], await self._within(peer.execute("query-status"))
            stopped = not status["running"]  # type: ignore[index]

    def _running(self, limit_s: float | None) -> bool:
        left = max(self.deadline - time.monotonic(), 0.1)
        left = left if limit_s is None else min(left, limit_s)
        request = {"launch": self.number, "until": "running", "timeout_s": left}
        return bool(self._client.call("wait", request, timeout_s=left + END_GRACE_S)["reached"])

    async def _within(self, work: Awaitable[_T]) -> _T:
        return await asyncio.wait_for(work, max(self.deadline - time.monotonic(), 0.1))

    async def _goodbye(self, peer: QMPClient) -> None:
        try:
            await asyncio.wait_for(peer.disconnect(), END_GRACE_S)
        except (TimeoutError, QMPError, OSError, EOFError):
            return  # it was a goodbye to a VMM that had gone first


async def _event_or_end(peer: QMPClient, listener: EventListener, names: Sequence[str]) -> str | None:
    """Wait for an event and return its name, or None once the VMM has closed the conversation."""
    event = asyncio.create_task(_event(listener, names))
    end = asyncio.create_task(_end(peer))
    try:
        await asyncio.wait({event, end}, return_when=asyncio.FIRST_COMPLETED)
        return event.result() if event.done() else None
    finally:
        for task in (event, end):
            task.cancel()


async def _event(listener: EventListener, names: Sequence[str]) -> str:
    while (name := str((await listener.get())["event"])) not in names:
        pass
    return name


async def _end(peer: QMPClient) -> None:
    while peer.runstate is Runstate.RUNNING:
        await peer.runstate_changed()
