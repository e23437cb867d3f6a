# SPDX-License-Identifier: GPL-2.0-or-later
"""The controller's part in a lease: who wants the host, and the wait for it."""

from __future__ import annotations

import functools
import getpass
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from pytest_seves.errors import LeaseError

if TYPE_CHECKING:
    from .client import AgentClient

EXPIRY_S = 30.0
"""A lease may be taken over when its agent gave no sign of life for so long."""
TELL_S = 30.0
"""Between two lines about a wait."""

Say = Callable[[str], None]


def say_nothing(text: str) -> None:
    """For who does not want to know."""


@dataclass(frozen=True)
class Tenant:
    """A run, as others see it: the same for all of its processes.

    :ivar run: its id; guests carry it in their environment.
    :ivar pid: the controller's.
    """

    run: str
    user: str
    machine: str
    pid: int

    @classmethod
    def new(cls) -> Self:
        """A run that begins in this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # before Python 3.13: KeyError; an account without a name
            user = str(os.getuid())
        return cls(secrets.token_hex(4), _plain(user), _plain(socket.gethostname()), os.getpid())

    @classmethod
    @functools.cache
    def here(cls) -> Self:
        """The run of a process that is part of no other."""
        return cls.new()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "?", name)[:64] or "?"


def take(client: AgentClient, tenant: Tenant, say: Say) -> None:
    """Have the host until the agent ends; one round trip when it is free.

    :raise LeaseError: it was not within the `lease_wait_s` of its lab file.
    """
    host = client.host
    request = {**asdict(tenant), "shared": host.shared, "expiry_s": EXPIRY_S}
    step, end = 0.0, math.inf
    while "held" in (told := client.call("lease.acquire", {**request, "timeout_s": step})):
        now = time.monotonic()
        end = min(end, now + host.lease_wait_s)  # from the first refusal on
        left, holder = end - now, _holder(told["held"])
        if left <= 0:
            raise LeaseError(
                f"{holder}, and did not let go within {host.lease_wait_s:g} s. Wait for that run to end, or "
                f"let it be awaited for longer: [host] lease_wait_s{_stuck(told['held'])}",
                host=host.name,
                holder=told["held"],
            )
        say(f"{host.name}: {holder}, waiting up to {max(round(left), 1)} s")
        step = min(TELL_S, left)


def _holder(held: dict[str, Any] | None) -> str:
    if held is None:
        return "held by a process that stays in the few steps of taking the lease"
    since = time.strftime("%H:%M", time.localtime(time.time() - held["held_s"]))
    return f"held by {held['user']}@{held['machine']} since {since} (run {held['run']})"


def _stuck(held: dict[str, Any] | None) -> str:
    """What to do about a holder that we may not end."""
    if not held or not held["expired"]:
        return ""
    return (
        f". Its agent, process {held['agent']} on the host, gives no sign of life and belongs to another "
        "account: that user, or root, can end it"
    )
