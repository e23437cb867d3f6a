# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP connection within a deadline, name look-up included."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pytest_seves.errors import HostUnreachable

T = TypeVar("T")


class Deadline:
    """A point in time by which all of something must be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())


def within(deadline: Deadline, function: Callable[[], T]) -> T:
    """What `function` gives or raises, from a thread that is left behind at the deadline.

    :raises TimeoutError: it took too long.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except (OSError, ValueError) as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(deadline.remaining)
    except TimeoutError:
        raise TimeoutError(f"no answer within {deadline.seconds:g} s") from None


def tcp(host: str, where: str, address: str, port: int, deadline: Deadline) -> socket.socket:
    """A connected socket; any of the name's addresses will do.

    :param host: the lab file's name, and `where`: what is called, for the message.
    :raises HostUnreachable: none of them answers.
    """
    try:
        infos = within(deadline, lambda: socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:
        raise HostUnreachable(
            f"{where}: the name does not resolve: {error}. Check `address`, or use a numeric one", host=host
        ) from error
    problems = []
    for family, kind, proto, _, target in infos:
        name = str(target[0])
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(max(deadline.remaining, 0.001))
            sock.connect(target)
        except OSError as error:
            sock.close()
            late = isinstance(error, TimeoutError)
            why = f"no answer within {deadline.seconds:g} s" if late else error.strerror
            problems.append(f"{name} port {port}: {why}")
        else:
            # paramiko leaves Nagle's algorithm on: with delayed acknowledgements an exec takes 40 ms longer
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise HostUnreachable(
        f"{where}: no TCP connection: {'; '.join(problems)}. Is the machine up, sshd running, the port right,"
        " a firewall or VPN between?",
        host=host,
        problems=problems,
    )
