# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a VMM under observation: every KVM and SEV ioctl that matters becomes one line of a timeline.

Needs Linux 5.3 and x86-64, no root, no compiler. The VMM dies with the recorder (PTRACE_O_EXITKILL), and no
filter can be taken off it again, so the recorder stays until the last process of the VMM is gone.

For a look by hand::

    python -m pytest_seves.agent.recorder --out timeline.jsonl -- qemu-system-x86_64 ...
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Optional

from pytest_seves.agent import bpf, capture, ptrace, sabotage
from pytest_seves.agent.journal import Journal
from pytest_seves.agent.tracee import wait_status
from pytest_seves.agent.tracer import Tracer
from pytest_seves.spec import kvm

FORMAT = "seves-timeline/1"
NOT_STARTED = 127
_BROKEN = 125


def record(
    argv: Sequence[str],
    *,
    out_fd: int,
    status_fd: int,
    rules: Sequence[Mapping[str, Any]] = (),
    mode: str = "auto",
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[str] = None,
    stdio: Mapping[int, int],
    unwatched: Sequence[str] = (),
) -> int:
    """Start `argv` and record it until it and all that it started have ended.

    To be called in a freshly forked process with one thread, which it may use up.

    :param out_fd: takes the timeline, one JSON object a line; must block.
    :param status_fd: takes the milestones: started, vcpu, finish, run, detached, exit, error.
    :param rules: sabotage, see :func:`pytest_seves.agent.sabotage.load`.
    :param mode: "trace", "stop", or "auto": trace where a filter's stop arrives.
    :param stdio: descriptors of the VMM, its own number to ours; it gets no others.
    :param unwatched: names of threads that use no KVM, which mode "stop" lets go.
    :return: exit status of the process started first, 128 + signal, 127 if it could not be executed.
    """
    gc.disable()  # nothing here makes cycles that matter
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    journal = Journal(out_fd, status_fd)
    try:
        start = _Start(argv, env, cwd, stdio, frozenset(name.encode() for name in unwatched))
        return _record(argv, journal, list(map(dict, rules)), mode, start)
    except BrokenPipeError:
        return _BROKEN  # who wanted to know is gone; the VMM dies with us
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            journal.milestone({"error": f"recorder: {error}"})
            journal.flush()
        return _BROKEN


def _record(
    argv: Sequence[str], journal: Journal, rules: list[dict[str, Any]], mode: str, start: _Start
) -> int:
    ptrace.check_machine()
    saboteur = sabotage.Saboteur(sabotage.load(rules))
    if mode not in ("auto", "trace", "stop"):
        raise ValueError(f"mode {mode!r}: wanted auto, trace or stop")
    trace = mode == "trace" or (mode == "auto" and can_trace())
    journal.line(
        {"format": FORMAT, "mode": "trace" if trace else "stop", "argv": list(argv), "t": time.monotonic_ns()}
    )
    tracer = start.tracer(trace, saboteur, journal)
    _forward_termination(tracer)
    try:
        tracer.run()
    except BaseException:
        tracer.signal(signal.SIGKILL)
        raise
    return _finish(tracer, saboteur, journal, start.error(), trace)


def _finish(
    tracer: Tracer, saboteur: sabotage.Saboteur, journal: Journal, error: Optional[str], trace: bool
) -> int:
    """Write the last lines; the exit status."""
    first = tracer.exits.get(tracer.child, 0)
    end: dict[str, Any] = {"end": True, "t": time.monotonic_ns(), "exit": wait_status(first)}
    if tracer.last is not None and tracer.last != tracer.child:
        end["last"] = {"pid": tracer.last, **wait_status(tracer.exits[tracer.last])}
    end.update(stops=tracer.stops, events=tracer.events, ran=sorted(tracer.ran), rules=saboteur.fired)
    if error is not None:
        end["error"] = error
    elif not tracer.events:
        cause = "; does a user-notification listener take the ioctls before the filter?" if trace else ""
        end["warning"] = f"no KVM or SEV ioctl was seen although the VMM ran{cause}"
    journal.line(end)
    journal.milestone({"error": error} if error is not None else {"exit": end["exit"]})
    journal.flush()
    if error is not None:
        return NOT_STARTED
    return 128 + os.WTERMSIG(first) if os.WIFSIGNALED(first) else os.WEXITSTATUS(first)


def _forward_termination(tracer: Tracer) -> None:
    """SIGTERM goes to the VMM; what a terminal sends reaches it by itself, and we stay to see its end."""

    def forward(number: int, _frame: object) -> None:
        tracer.signal(number)

    signal.signal(signal.SIGTERM, forward)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Start:
    """The VMM's process, from the fork to its execve."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Optional[Mapping[str, str]],
        cwd: Optional[str],
        stdio: Mapping[int, int],
        unwatched: frozenset[bytes],
    ) -> None:
        self._unwatched = unwatched
        self._argv = argv
        self._env = os.environ if env is None else env
        self._cwd = cwd
        self._stdio = stdio
        self._failure = -1

    def tracer(self, trace: bool, saboteur: sabotage.Saboteur, journal: Journal) -> Tracer:
        """Fork and attach; the child executes the VMM when it is traced."""
        if not self._argv or not self._argv[0]:
            raise ValueError("argv: wanted a program")
        self._failure, failure = os.pipe()
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)  # so that the recorder's end is seen
            self._child(_filter(saboteur) if trace else None, ready, failure)
        for mine in (ready, failure, *{ours for ours in self._stdio.values() if ours > 2}):
            os.close(mine)  # so that the VMM's end of each is seen
        try:
            ptrace.seize(child)
        except OSError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        if not trace:
            ptrace.interrupt(child)  # so that its first stop makes it a thread with system call stops
        tracer = Tracer(child, trace=trace, saboteur=saboteur, journal=journal)
        tracer.free = frozenset() if trace else self._unwatched
        os.write(go, b"x")
        os.close(go)
        return tracer

    def error(self) -> Optional[str]:
        """Why the VMM could not be executed; None: it was."""
        text = os.read(self._failure, 4096).decode(errors="replace")
        return text or None

    def _child(self, filter_code: Optional[list[bpf.Instruction]], ready: int, failure: int) -> NoReturn:
        try:
            if not os.read(ready, 1):
                os._exit(NOT_STARTED)
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            failure = self._descriptors(failure)
            if self._cwd is not None:
                os.chdir(self._cwd)
            if filter_code is not None:
                bpf.install(filter_code)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvpe(self._argv[0], list(self._argv), dict(self._env))
        except (OSError, ValueError) as error:
            os.write(failure, f"cannot execute {self._argv[0]!r}: {error}".encode())
        finally:
            os._exit(NOT_STARTED)

    def _descriptors(self, failure: int) -> int:
        """Give the VMM what it is to have; execve closes the rest. Returns where `failure` is now."""
        above = max(self._stdio, default=0) + 1
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(fd), False)
        moved = {
            target: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above) for target, ours in self._stdio.items()
        }
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, above)
        for target, ours in moved.items():
            os.dup2(ours, target, inheritable=True)
        return failure


def _filter(saboteur: sabotage.Saboteur) -> list[bpf.Instruction]:
    every = kvm.KVM_CHECK_EXTENSION in saboteur.requests
    return bpf.program(capture.RECORDED | saboteur.requests, None if every else capture.CAPABILITIES)


def can_trace() -> bool:
    """Whether a filter's stop arrives here: try it, in a child, with a harmless request on no descriptor.

    It does not where filters are refused, or where a user-notification listener takes the ioctl first.
    """
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(ready, 1)
            bpf.install(bpf.program({kvm.KVM_MEMORY_ENCRYPT_OP}, ()))
            with contextlib.suppress(OSError):
                fcntl.ioctl(2**31 - 1, kvm.KVM_MEMORY_ENCRYPT_OP)
        finally:
            os._exit(0)
    os.close(ready)
    stopped = False
    try:
        ptrace.seize(child)
        os.write(go, b"x")
        while True:
            _, status = os.waitpid(child, ptrace.WALL)
            if not os.WIFSTOPPED(status):
                return stopped
            event = status >> 16
            stopped = stopped or event == ptrace.EVENT_SECCOMP
            ptrace.resume(ptrace.CONT, child, 0 if event else os.WSTOPSIG(status))
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(go)


def main() -> int:
    """Record a VMM by hand: timeline to a file, milestones to stderr or another one."""
    parser = argparse.ArgumentParser(prog="python -m pytest_seves.agent.recorder", description=main.__doc__)
    parser.add_argument("--mode", choices=("auto", "trace", "stop"), default="auto")
    parser.add_argument("--out", default="timeline.jsonl", metavar="FILE")
    parser.add_argument("--status", metavar="FILE", help="milestones; the VMM's stderr without it")
    parser.add_argument("--rules", default="[]", metavar="JSON", help="sabotage")
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    out = os.open(options.out, flags, 0o644)
    status = os.open(options.status, flags, 0o644) if options.status else 2
    return record(
        options.argv,
        out_fd=out,
        status_fd=status,
        rules=json.loads(options.rules),
        mode=options.mode,
        stdio={0: 0, 1: 1, 2: 2},
    )


if __name__ == "__main__":
    sys.exit(main())
