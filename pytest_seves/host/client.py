# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of the agent: requests and replies over one SSH channel."""

from __future__ import annotations

import errno
import itertools
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_seves.agent.frames import Decoder, FrameError, encode
from pytest_seves.agent.lease import EXIT_STATUS as LEASE_LOST
from pytest_seves.errors import (
    AgentDied,
    AgentError,
    AgentGarbage,
    AgentRemoteError,
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    HostError,
    LeaseLost,
    NoPython,
)
from pytest_seves.host import bootstrap
from pytest_seves.host.agentzip import AgentZip, agent_zip
from pytest_seves.host.ahead import Ahead
from pytest_seves.host.inventory import LabHost

if TYPE_CHECKING:  # it imports paramiko, which is slow: only when a host is used
    from pytest_seves.host.ssh import Connection, Process

_START_S = 30.0
_END_S = 10.0
_CALL_S = 30.0
_MARGIN_S = 10.0
_SLICE = 1 << 15
_STDERR_KEPT = 4096
#: Our signs of life, and how long the agent goes on without one: guests end within 10 s of a silent cut.
_BEAT_S = 2.0
_ALONE_S = 8.0
_BEAT = encode({"beat": _ALONE_S})
_GARBAGE_SHOWN = 2048


@dataclass
class Call:
    """A request under way."""

    client: AgentClient
    op: str
    number: int
    answered: threading.Event = field(default_factory=threading.Event)
    reply: dict[str, Any] | None = None

    def result(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the answer; raises as :meth:`AgentClient.call` does."""
        return self.client.wait(self, timeout_s)


class AgentClient:
    """A running agent. Thread-safe; a context manager that ends the agent, and all that it started, on exit.

    :param release: called once when the agent has ended and its connection is no longer needed.
    """

    def __init__(
        self, host: LabHost, process: Process, program: AgentZip, release: Callable[[], None]
    ) -> None:
        self.host = host
        #: The agent's greeting: python, agent, pid, monotonic_ns, time_ns.
        self.hello: dict[str, Any] = {}
        #: What is asked for before a test does.
        self.ahead = Ahead(self)
        #: Bytes handed to SSH, for whoever watches; the last 2 MiB of them may still be on their way.
        self.sent = 0
        self._owner = os.getpid()
        self._process = process
        self._program = program
        self._release = release
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._failure: Callable[[], HostError] | None = None
        self._greeted = threading.Event()
        self._stderr = b""
        self._closed = False
        self._threads = {
            name: threading.Thread(target=target, name=f"{host.name}-{name}", daemon=True)
            for name, target in (("stderr", self._read_stderr), ("write", self._write), ("read", self._read))
        }
        for (
            thread
        ) in self._threads.values():  # the reader last: it joins another when there is nothing to read
            thread.start()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_hello(self, timeout_s: float) -> None:
        """Wait until the agent runs.

        :raises HostError: it does not; the subclass says why.
        """
        if not self._greeted.wait(timeout_s):
            raise DeadlineExceeded(
                f"the agent did not start within {timeout_s:g} s; its stderr: {self._stderr_text()}",
                host=self.host.name,
            )
        self._raise_failure()
        if self.hello.get("agent") != self._program.sha256:
            raise AgentError(
                f"wanted agent {self._program.sha256}, got {self.hello.get('agent')!r}", host=self.host.name
            )

    def call(
        self, op: str, args: dict[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Ask the agent for `op` and wait for the answer.

        :param timeout_s: without it, that in `args` and 10 s more, or 30 s.
        :raises AgentRemoteError: the agent could not do it.
        :raises DeadlineExceeded: no answer in time. A late one is dropped.
        :raises HostError: the agent or the connection is gone.
        """
        args = args or {}
        if timeout_s is None:
            timeout_s = float(args["timeout_s"]) + _MARGIN_S if "timeout_s" in args else _CALL_S
        return self.ask(op, args).result(timeout_s)

    def ask(self, op: str, args: dict[str, Any] | None = None, *, ahead: bool = False) -> Call:
        """Ask the agent for `op`, and do not wait: it begins with what it is asked for in that order.

        :param ahead: it begins when it has no other guest to launch, and no other program to run.
        """
        self._check_owner()
        call = Call(self, op, next(self._numbers))
        try:
            frame = encode({"id": call.number, "op": op, "args": args or {}, "ahead": ahead})
        except ValueError as error:
            raise AgentError(f"{op}: the request is too large: {error}", host=self.host.name) from error
        with self._lock:
            self._raise_failure()
            self._calls[call.number] = call
            self._outbox.put(frame)
        return call

    def wait(self, call: Call, timeout_s: float) -> dict[str, Any]:
        """The answer to what was asked for."""
        if not call.answered.wait(timeout_s):
            with self._lock:
                self._calls.pop(call.number, None)
            raise DeadlineExceeded(
                f"{call.op}: the agent did not answer within {timeout_s:g} s",
                host=self.host.name,
                op=call.op,
            )
        if call.reply is None:
            self._raise_failure()
            raise AgentError(f"{call.op}: the client was closed meanwhile", host=self.host.name)
        return self._result(call.op, call.reply)

    def _result(self, op: str, reply: dict[str, Any]) -> dict[str, Any]:
        error = reply.get("error")
        if error is None:
            result: dict[str, Any] = reply["ok"]
            return result
        if error.get("kind") == LeaseLost.__name__:
            raise LeaseLost(str(error.get("message")), host=self.host.name, op=op)
        raise AgentRemoteError(
            f"{op}: {error.get('kind')}: {error.get('message')}",
            kind=str(error.get("kind")),
            host=self.host.name,
            op=op,
            remote=error.get("evidence"),
        )

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise AgentError("this client belongs to the process that was forked", host=self.host.name)

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure()

    # The three threads

    def _write(self) -> None:
        """What is asked for, and a sign of life when nothing was asked for a while."""
        with suppress(OSError):  # the reader finds out why
            while (frame := self._next()) is not None:
                for at in range(0, len(frame), _SLICE):
                    self._process.send(frame[at : at + _SLICE])
                    self.sent += len(frame[at : at + _SLICE])

    def _next(self) -> bytes | None:
        try:
            return self._outbox.get(timeout=_BEAT_S)
        except queue.Empty:
            return _BEAT if self._greeted.is_set() else b""

    def _read_stderr(self) -> None:
        while data := self._process.recv_stderr():
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]

    def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := self._process.recv():
                for message in decoder.feed(data):
                    self._dispatch(message)
        except FrameError as error:
            what, shown = str(error), self._more_garbage(error.data)
            self._fail(lambda: self._garbage(what, shown))
        except (KeyError, TypeError, ValueError) as error:
            what, shown = f"a frame that makes no sense: {error!r}", decoder.pending
            self._fail(lambda: self._garbage(what, shown))
        else:
            self._fail(self._post_mortem())

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._lock:
                call = self._calls.pop(message["id"], None)
            if call:
                call.reply = message
                call.answered.set()
        elif "hello" in message:
            self.hello = message["hello"]
            self._outbox.put(_BEAT)  # from the start: the line may be cut before anything else is said
            self._greeted.set()
        elif message["bootstrap"] == "send":
            data = self._program.data
            self._outbox.put(len(data).to_bytes(4, "big") + data)
        else:
            self._fail(lambda: self._bootstrap_error(message))

    # How it ends

    def _fail(self, failure: Callable[[], HostError]) -> None:
        """Let every caller know, now and later; the first reason stays."""
        with self._lock:
            if self._failure is None:
                self._failure = failure
            calls, self._calls = list(self._calls.values()), {}
        self._greeted.set()
        for call in calls:
            call.answered.set()
        self._outbox.put(None)
        self._process.close()

    def _more_garbage(self, data: bytes) -> bytes:
        """What else is on the channel: a few words often say where the rest comes from."""
        timer = threading.Timer(0.5, self._process.close)
        timer.start()
        while len(data) < _GARBAGE_SHOWN and (more := self._process.recv()):
            data += more
        timer.cancel()
        return data

    def _garbage(self, what: str, data: bytes) -> HostError:
        text = data[:_GARBAGE_SHOWN].decode("utf-8", "backslashreplace")
        return AgentGarbage(
            f"the agent's channel carries something else ({what}): {text!r}. Does a shell profile or a forced"
            " command print on login? It must be silent without a terminal",
            host=self.host.name,
            raw=data[:_GARBAGE_SHOWN],
            stderr=self._stderr_text(),
        )

    def _bootstrap_error(self, message: dict[str, Any]) -> HostError:
        kind, text = str(message.get("kind")), str(message.get("message"))
        if kind == "OldPython":
            return NoPython(
                f"{text}; the agent needs 3.9 or newer. Install one and name it as `python` in the lab file",
                host=self.host.name,
            )
        full = os.strerror(errno.ENOSPC) in text
        return (DiskFull if full else AgentError)(
            f"the agent cannot be stored on the host: {text}. It needs a private directory with some space:"
            " check the home directory, or XDG_CACHE_HOME there",
            host=self.host.name,
            kind=kind,
        )

    def _post_mortem(self) -> Callable[[], HostError]:
        """Why the channel ended."""
        status = self._process.wait_exit(2)
        self._threads["stderr"].join(1)
        lost = self._process.lost_within(0.5) if status is None else None
        words, name = self._stderr_text(), self.host.name
        python = self.host.python
        if lost:
            return lambda: ConnectionLost(f"the SSH connection is gone: {lost}", host=name, stderr=words)
        if status in (126, 127) and not self.hello:
            return lambda: NoPython(
                f"{python!r} cannot be executed there (exit status {status}): {words}. Install Python 3.9 or"
                " newer, or name one as `python` in the lab file",
                host=name,
                status=status,
            )
        if status == LEASE_LOST:
            return lambda: LeaseLost(words.rpartition("pytest-seves agent: ")[2], host=name)
        how = "without an exit status, as after a signal" if status is None else f"with exit status {status}"
        when = "while it was needed" if self.hello else "before it greeted"
        return lambda: AgentDied(
            f"the agent ended {when}, {how}; its stderr ends: {words}", host=name, status=status, stderr=words
        )

    def _stderr_text(self) -> str:
        return self._stderr.decode("utf-8", "backslashreplace").strip() or "(empty)"

    def close(self) -> None:
        """End the agent with all that it started, and wait for that; harmless when done before."""
        with self._lock:
            if self._closed or os.getpid() != self._owner:
                return
            self._closed = True
            if self._failure is None:
                self._failure = lambda: AgentError("the client is closed", host=self.host.name)
        self._process.send_eof()
        self._process.wait_exit(_END_S)
        self._process.close()
        for name in ("read", "stderr", "write"):
            self._threads[name].join(_END_S)
        self._release()


@dataclass
class _Shared:
    connection: Connection
    users: int = 0


_shared: dict[tuple[int, LabHost], _Shared] = {}
_shared_lock = threading.Lock()


def connect(host: LabHost) -> AgentClient:
    """Start an agent on `host`; agents of one process share one connection per host.

    :raises ConnectError: no usable connection.
    :raises AgentError: the agent does not start there.
    """
    from pytest_seves.host import ssh  # slow: only when a host is used

    key = (os.getpid(), host)
    with _shared_lock:
        shared = _shared.get(key)
        if shared is None or shared.connection.lost:
            shared = _shared[key] = _Shared(ssh.connect(host))
        shared.users += 1

    def release() -> None:
        with _shared_lock:
            shared.users -= 1
            if shared.users:
                return
            if _shared.get(key) is shared:
                del _shared[key]
        shared.connection.close()

    program = agent_zip()
    try:
        command = bootstrap.command(host.python, program.sha256, host.sudo)
        process = shared.connection.execute(command, host.connect_timeout_s)
    except HostError:
        release()
        raise
    client = AgentClient(host, process, program, release)
    try:
        client.wait_hello(_START_S)
    except HostError:
        client.close()
        raise
    return client


open_client = connect
