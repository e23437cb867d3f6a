# SPDX-License-Identifier: GPL-2.0-or-later
"""Short work in a child process: a command with captured output, or a Python function with a JSON result."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from typing import Any, Callable

from pytest_seves.agent.bounded import BoundedBytes
from pytest_seves.agent.lineage import die_with_parent
from pytest_seves.agent.loop import Loop, Source, wait_status

Done = Callable[[dict[str, Any]], None]
Fail = Callable[[str, str, dict[str, Any]], None]

_GRACE_S = 1.0


class Job:
    """A child with its output; calls back once both have ended. The deadline kills it.

    :param limit: how many bytes of stdout, and of stderr, are kept.
    """

    def __init__(
        self,
        loop: Loop,
        pid: int,
        out: int,
        err: int,
        timeout_s: float,
        limit: int,
        done: Callable[[Job], None],
    ) -> None:
        self.pid = pid
        self.status: int | None = None
        self.timed_out = False
        self.stdout = BoundedBytes(limit)
        self.stderr = BoundedBytes(limit)
        self._loop = loop
        self._done = done
        self._finished = False
        self._sources = (
            Source(loop, out, self.stdout.add, self._check),
            Source(loop, err, self.stderr.add, self._check),
        )
        self._deadline = loop.after(timeout_s, self._late)
        loop.on_exit(pid, self._exited)

    def _late(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        """Kill the child's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _exited(self, status: int) -> None:
        self.status = status
        self._deadline.cancel()
        self._loop.after(_GRACE_S, self._finish)  # a grandchild may hold the pipes open for ever
        self._check()

    def _check(self) -> None:
        if self.status is not None and not any(source.open for source in self._sources):
            self._finish()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            for source in self._sources:
                source.drain()
            self._done(self)


def run(
    loop: Loop,
    done: Done,
    *,
    argv: list[str],
    env: dict[str, str] | None = None,
    timeout_s: float,
    limit: int = 1 << 20,
) -> Job:
    """Run a command without a shell: ``{"status"|"signal", "stdout", "stderr", "truncated", "timed_out"}``.

    stdin is empty, `env` is added to ours, output is in base64: its first and last half of `limit`.

    :raises OSError: the program cannot be executed.
    """
    parent = os.getpid()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent),
    )
    process.returncode = 0  # reaped by the loop, not by this object
    if process.stdout is None or process.stderr is None:
        raise ValueError("no pipes")

    def finished(job: Job) -> None:
        done(
            {
                **({"status": None} if job.status is None else wait_status(job.status)),
                "stdout": base64.b64encode(job.stdout.head + job.stdout.tail).decode(),
                "stderr": base64.b64encode(job.stderr.head + job.stderr.tail).decode(),
                "truncated": bool(job.stdout.dropped or job.stderr.dropped),
                "timed_out": job.timed_out,
            }
        )

    with process.stdout, process.stderr:
        out, err = os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno())
    return Job(loop, process.pid, out, err, timeout_s, limit, finished)


def call(
    loop: Loop,
    done: Done,
    fail: Fail,
    *,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    args: dict[str, Any],
    timeout_s: float,
) -> Job:
    """Call `function` with `args` in a forked child, so that it may block or crash; its result is JSON."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(parent, {1: out_write, 2: err_write}, function, args)
    os.close(out_write)
    os.close(err_write)

    def finished(job: Job) -> None:
        if job.timed_out:
            fail("DeadlineExceeded", f"no result within {timeout_s:g} s", {"timeout_s": timeout_s})
        elif job.status != 0:
            text = job.stderr.end(1 << 14).decode("utf-8", "replace")
            exit_ = wait_status(job.status or 0)
            last = text.strip().rpartition("\n")[2]
            fail("Crashed", f"ended with {exit_}: {last}", {"exit": exit_, "stderr": text})
        else:
            answer(job)

    def answer(job: Job) -> None:
        try:
            done(json.loads(job.stdout.head + job.stdout.tail))
        except ValueError as error:
            fail("Crashed", f"its result is no JSON: {error}", {"stdout": repr(job.stdout.head[:2048])})

    return Job(loop, pid, out_read, err_read, timeout_s, 32 << 20, finished)


def _child(
    parent: int,
    stdio: dict[int, int],
    function: Callable[[dict[str, Any]], dict[str, Any]],
    args: dict[str, Any],
) -> None:
    """The forked side of :func:`call`. Never returns."""
    status = 1
    try:
        become_child(parent, stdio)
        with open(1, "w", closefd=False) as file:
            json.dump(function(args), file)
        status = 0
    finally:
        leave(status)


def become_child(parent: int, stdio: dict[int, int], keep: tuple[int, ...] = ()) -> None:
    """Make a forked copy of the agent a process of its own: session, signals, descriptors.

    Descriptor 0 becomes /dev/null, those in `stdio` {target: source} replace ours, everything but them and
    `keep` is closed: no child may hold the agent's channel or another child's pipes.
    """
    os.setsid()
    die_with_parent(parent)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for target, source in stdio.items():
        os.dup2(source, target)
    wanted = {0, 1, 2, *keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in wanted:
            with contextlib.suppress(OSError):
                os.close(int(name))


def leave(status: int) -> None:
    """End a forked child at once, with the traceback of the exception that is under way, if any."""
    if sys.exc_info()[0] is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
    os._exit(status)
