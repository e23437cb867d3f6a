# SPDX-License-Identifier: GPL-2.0-or-later
"""One VMM under the recorder: its descriptors, its milestones and what it said."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from typing import Any, Callable

from pytest_seves.agent import command, qmp_sabotage, recorder
from pytest_seves.agent.bounded import DEFAULT_LIMIT, BoundedBytes, Packed
from pytest_seves.agent.loop import Loop, Source, wait_status
from pytest_seves.agent.stream import Stream

QMP_FD = 3
"""The VMM's end of the QMP socket."""
CONSOLE_FD = 4
"""The VMM's end of the serial console's socket."""
GDB_FD = 5
"""The VMM's end of a debugger's socket, where one was asked for."""

_GRACE_S = 5.0
_DRAIN_S = 1.0
_PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ since Python 3.10


class Launch:
    """A recorder process with a VMM under it, from the fork until everything they said is in.

    :param on_end: called once, when the VMM and its recorder are gone.
    :param qmp_rules: sabotage of the QMP conversation (:mod:`~pytest_seves.agent.qmp_sabotage`).
    :param gdb: give the VMM a socket for a debugger as well.
    :param unwatched: names of threads of the VMM that use no KVM (:mod:`~pytest_seves.agent.tracer`).
    :ivar deadline: when the VMM is killed, on the monotonic clock.
    :ivar on_change: called when the launch has come further or its console has said something.
    """

    def __init__(
        self,
        number: int,
        loop: Loop,
        *,
        argv: list[str],
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        rules: list[dict[str, Any]] | None = None,
        qmp_rules: list[dict[str, Any]] | None = None,
        gdb: bool = False,
        unwatched: list[str] | None = None,
        mode: str = "auto",
        timeout_s: float,
        limit: int = DEFAULT_LIMIT,
        on_end: Callable[[], None],
    ) -> None:
        if mode not in ("auto", "trace", "stop"):
            raise ValueError(f"mode {mode!r}: wanted auto, trace or stop")
        if not argv or not all(isinstance(word, str) for word in argv):
            raise ValueError(f"argv {argv!r}: wanted a list of strings, the program first")
        lies = qmp_sabotage.load(qmp_rules or [])
        self.number = number
        self.ended = False
        self.on_change: Callable[[], None] = lambda: None
        self._on_end = on_end
        self._loop = loop
        self._vmm: int | None = None
        self._vcpus: set[int] = set()
        self._running: set[int] = set()
        self._finished_launch = False
        self._exit: dict[str, Any] | None = None
        self._error: str | None = None
        self._status: int | None = None
        self._killed = False
        self._status_lines = b""
        self._timeline = Packed()
        self._kept = {name: BoundedBytes(limit) for name in ("console", "stdout", "stderr")}
        ends = _Ends(gdb)
        self.pid = _fork_recorder(ends, argv, env, cwd, rules or [], mode, unwatched or [])
        ends.close_theirs()
        saboteur = qmp_sabotage.QmpSaboteur(lies) if lies else None
        self.qmp = Stream(ends.qmp, loop, self._hung_up, limit, saboteur)
        self.gdb = Stream(ends.gdb, loop, self._hung_up, limit) if ends.gdb else None
        self._streams = [stream for stream in (self.qmp, self.gdb) if stream]
        self._console = Source(loop, ends.console.detach(), self._said, self._check)
        self._sources = [
            Source(loop, ends.out, self._timeline.add, self._check),
            Source(loop, ends.status, self._milestones, self._check),
            self._console,
            Source(loop, ends.stdout, self._kept["stdout"].add, self._check),
            Source(loop, ends.stderr, self._kept["stderr"].add, self._check),
        ]
        self.deadline = time.monotonic() + timeout_s
        self._deadline = loop.after(timeout_s, self.destroy)
        loop.on_exit(self.pid, self._recorder_ended)

    # What the recorder tells

    def _milestones(self, data: bytes) -> None:
        *lines, self._status_lines = (self._status_lines + data).split(b"\n")
        for line in lines:
            try:
                self._milestone(json.loads(line))
            except (ValueError, TypeError, AttributeError) as error:
                self._error = f"the recorder's milestone {line[:200]!r} makes no sense: {error!r}"
        self.on_change()

    def _milestone(self, milestone: dict[str, Any]) -> None:
        for name, value in milestone.items():
            if name == "started":
                self._vmm = int(value)
            elif name == "vcpu":
                self._vcpus.add(int(value))
            elif name == "run":
                self._running.add(int(value))
            elif name == "finish":
                self._finished_launch = True
            elif name == "detached":  # it has put itself into the background; no pid of ours to signal
                self._vmm = None
            elif name == "exit":
                self._exit = dict(value)
            elif name == "error":
                self._error = str(value)

    def _recorder_ended(self, status: int) -> None:
        self._status = status
        self._loop.after(_DRAIN_S, self._end)  # whoever still holds a pipe then is no concern of ours
        self._check()

    def _said(self, data: bytes) -> None:
        self.console.add(data)
        self.on_change()

    def _hung_up(self) -> None:
        self._check()
        self.on_change()

    def _check(self) -> None:
        still_open = any(stream.open for stream in self._streams)
        still_open = still_open or any(source.open for source in self._sources)
        if self._status is not None and not still_open:
            self._end()

    def _end(self) -> None:
        if self.ended:
            return
        for source in self._sources:
            source.drain()
        for stream in self._streams:
            stream.drain()
        self.ended = True
        self._deadline.cancel()
        if self._exit is None and self._error is None:
            how = wait_status(self._status or 0)
            text = self._kept["stderr"].end(2048).decode("utf-8", "replace").strip()
            self._error = (
                f"the recorder ended with {how} before the VMM's end was seen; stderr ends: {text or 'empty'}"
            )
        self.on_change()
        self._on_end()

    # What becomes of it

    @property
    def all_run(self) -> bool:
        """Whether every created vCPU has run."""
        return bool(self._vcpus) and self._vcpus <= self._running

    @property
    def console(self) -> BoundedBytes:
        """What the serial console has said."""
        return self._kept["console"]

    def type(self, text: bytes) -> bool:
        """Write to the serial console; False when the VMM has closed it, or has not read what came before."""
        return self._console.write(text)

    def kill(self, number: int) -> bool:
        """Send a signal to the VMM; False when there is none (yet, or any more)."""
        if self._vmm is None or self._exit is not None or self._status is not None:
            return False
        try:
            os.kill(self._vmm, number)
        except ProcessLookupError:
            return False
        return True

    def destroy_after(self, seconds: float) -> None:
        """Give the VMM so much time to end by itself."""
        self._loop.after(seconds, self.destroy)

    def destroy(self) -> None:
        """SIGKILL the VMM; the recorder, too, if it does not follow.

        A VMM that put itself into the background is known to the recorder only, which passes SIGTERM on.
        """
        if self.ended or self._status is not None:
            return
        self._killed = True
        if not self.kill(signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        self._loop.after(_GRACE_S, self.kill_recorder)

    def kill_recorder(self) -> None:
        """SIGKILL the recorder's process group; what it traces dies with it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def everything(self) -> dict[str, Any]:
        """All that is known, once it has ended; call once."""
        return {
            "timeline_z": base64.b64encode(self._timeline.finish()).decode(),
            "timeline_dropped": self._timeline.dropped,
            "qmp": self.qmp.transcript.as_json(),
            "qmp_dropped": self.qmp.transcript.dropped,
            "gdb": self.gdb.transcript.as_json() if self.gdb else [],
            **{name: kept.as_json() for name, kept in self._kept.items()},
            "exit": self._exit,
            "error": self._error,
            "killed": self._killed,
            "finish": self._finished_launch,
            "vcpus": sorted(self._vcpus),
            "running": sorted(self._running),
        }


class _Ends:
    """Both ends of every pipe and socket of a launch. Ours are attributes, theirs in :attr:`theirs`."""

    def __init__(self, gdb: bool) -> None:
        self.theirs: dict[str, int] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close_theirs)
            self.out, self.status, self.stdout, self.stderr = (
                self._pipe(name, undo) for name in ("out", "status", "stdout", "stderr")
            )
            self.qmp = self._pair("qmp", undo)
            self.console = self._pair("console", undo)
            self.gdb = self._pair("gdb", undo) if gdb else None
            undo.pop_all()
        with contextlib.suppress(OSError):  # over the user's share of pipe memory: a small pipe works, too
            fcntl.fcntl(self.out, _F_SETPIPE_SZ, _PIPE_SIZE)

    def _pipe(self, name: str, undo: contextlib.ExitStack) -> int:
        read, self.theirs[name] = os.pipe()
        undo.callback(os.close, read)
        return read

    def _pair(self, name: str, undo: contextlib.ExitStack) -> socket.socket:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        self.theirs[name] = theirs.detach()
        return ours

    def close_theirs(self) -> None:
        """Close what belongs to the child."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs.clear()


def _fork_recorder(
    ends: _Ends,
    argv: list[str],
    env: dict[str, str] | None,
    cwd: str | None,
    rules: list[dict[str, Any]],
    mode: str,
    unwatched: list[str],
) -> int:
    """Fork; the child becomes the recorder and starts the VMM. Its own last words go to the VMM's stderr."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        theirs = ends.theirs
        command.become_child(parent, {1: theirs["stderr"], 2: theirs["stderr"]}, tuple(theirs.values()))
        status = recorder.record(
            argv,
            out_fd=theirs["out"],
            status_fd=theirs["status"],
            rules=rules,
            mode=mode,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            unwatched=unwatched,
            stdio={
                0: 0,
                1: theirs["stdout"],
                2: theirs["stderr"],
                QMP_FD: theirs["qmp"],
                CONSOLE_FD: theirs["console"],
                **({GDB_FD: theirs["gdb"]} if "gdb" in theirs else {}),
            },
        )
    finally:
        command.leave(status)
    return pid
