# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread that waits for descriptors, timers and ended children."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import socket
import time
from typing import Any, Callable

Callback = Callable[[], None]
OnExit = Callable[[int], None]


class Timer:
    """A callback that is still to come; :meth:`cancel` it at will."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not call back."""
        self.callback = None


class Loop:
    """Calls back when something happened. Every callback must return at once.

    Descriptors are watched as they are; those that are written to should be non-blocking. All children of the
    process are reaped here, also orphans that were handed to it.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, tuple[Callback | None, Callback | None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._children: dict[int, OnExit] = {}
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, or else the wake-up is not written
        self.on_readable(self._wake_read.fileno(), self._woken)

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back while `fd` has something to read, its end included; None ends that."""
        self._watch(fd, callback, self._watched.get(fd, (None, None))[1])

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back while `fd` takes data; None ends that."""
        self._watch(fd, self._watched.get(fd, (None, None))[0], callback)

    def forget(self, fd: int) -> None:
        """Watch `fd` no more. Call it before closing."""
        self._watch(fd, None, None)

    def _watch(self, fd: int, read: Callback | None, write: Callback | None) -> None:
        before = _events(*self._watched.pop(fd, (None, None)))
        events = _events(read, write)
        if events:
            self._watched[fd] = (read, write)
            if events != before:
                (self._selector.modify if before else self._selector.register)(fd, events)
        elif before:
            self._selector.unregister(fd)

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, `seconds` from now."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def poll(
        self, attempt: Callable[[], bool], late: Callback, timeout_s: float, every_s: float = 0.01
    ) -> None:
        """Call `attempt` now, and again and again until it returns True; `late` when it never did in time."""
        deadline = time.monotonic() + timeout_s

        def again() -> None:
            if attempt():
                return
            if time.monotonic() < deadline:
                self.after(every_s, again)
            else:
                late()

        again()

    def on_exit(self, pid: int, callback: OnExit) -> None:
        """Call back with the wait status when the child `pid` has ended."""
        self._children[pid] = callback
        self._reap()

    def turn(self) -> None:
        """Wait for something to happen, and call whom it concerns."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, events in self._selector.select(timeout):
            for event, index in ((selectors.EVENT_READ, 0), (selectors.EVENT_WRITE, 1)):
                callback = self._watched.get(key.fd, (None, None))[index]  # an earlier one may have ended it
                if events & event and callback:
                    callback()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback:
                callback()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._children.pop(pid, None)
            if callback:
                callback(status)

    def close(self) -> None:
        """Give signals and descriptors back."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()


def _events(read: Callback | None, write: Callback | None) -> int:
    return (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)


class Source:
    """Reads a descriptor until its end and hands on what comes; owns the descriptor.

    :param on_end: called once, when the other side has closed it.
    """

    def __init__(self, loop: Loop, fd: int, on_data: Callable[[bytes], None], on_end: Callback) -> None:
        self._loop = loop
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self.open = True
        os.set_blocking(fd, False)
        loop.on_readable(fd, self._ready)

    def _ready(self) -> None:
        data = self._read()
        if data:
            self._on_data(data)
        elif data is not None:
            self.close()
            self._on_end()

    def _read(self) -> bytes | None:
        """What is there: bytes, b"" at the end, None for nothing yet."""
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # a socket's peer went with unread data: its end, too
            return b""

    def write(self, data: bytes) -> bool:
        """Write to a socket; False when it does not take all at once, or is closed."""
        try:
            return self.open and os.write(self._fd, data) == len(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False

    def drain(self) -> None:
        """Take what is there without waiting, and close."""
        while self.open:
            data = self._read()
            if not data:
                self.close()
                return
            self._on_data(data)

    def close(self) -> None:
        """Close the descriptor."""
        if self.open:
            self.open = False
            self._loop.forget(self._fd)
            os.close(self._fd)


def wait_status(status: int) -> dict[str, Any]:
    """A wait status as ``{"status": n}`` or ``{"signal": n, "core": bool}``."""
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status)}
    return {"status": os.WEXITSTATUS(status)}
