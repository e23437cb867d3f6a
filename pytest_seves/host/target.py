# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is being judged: what its lab file says, what it is, and the line to it."""

from __future__ import annotations

import time
from functools import cached_property
from types import TracebackType
from typing import Any

from pytest_seves.errors import ConnectError, ConnectionLost, HostError, HostUnreachable

from .client import AgentClient, open_client
from .facts import HostFacts, decode_facts
from .health import Health
from .inventory import LabHost
from .readiness import Row, judge, ready

_FACTS_TIMEOUT_S = 60.0


class Target:
    """One host, connected on first use; a context manager that ends the connection.

    :param entry: its lab file.
    """

    def __init__(self, entry: LabHost) -> None:
        self.entry = entry
        self.name = entry.name
        self.health = Health(entry.name)

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        client: AgentClient | None = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    @property
    def connected(self) -> bool:
        """Whether an agent was started."""
        return "client" in self.__dict__

    @cached_property
    def client(self) -> AgentClient:
        """The agent on the host. That it is reached is tried twice: nothing has begun there then.

        :raise ConnectError, AgentError: it cannot be reached or started.
        """
        try:
            return open_client(self.entry)
        except (HostUnreachable, ConnectionLost):
            return open_client(self.entry)

    def fault(self, error: BaseException | None = None) -> HostError | None:
        """Look at the host: the fault it has, None if it is well.

        Where it does not answer, a new connection is made: only what cannot be reached anew is gone.

        :param error: what made one look; None for a look without a reason.
        """
        if isinstance(error, ConnectError) and not self.connected:
            return error  # tried twice already
        try:
            return self.health.look(self.client)
        except HostError as silence:
            return self._anew(error if isinstance(error, ConnectionLost) else silence)

    def _anew(self, silence: HostError) -> HostError | None:
        self._disconnect()
        try:
            return self.health.look(self.client)
        except HostError as error:
            if isinstance(silence, ConnectionLost):
                return ConnectionLost(f"{_bare(silence)}; then {_bare(error)}", host=self.name)
            return error

    @cached_property
    def facts(self) -> HostFacts:
        """What the host is, asked once."""
        wanted = {"vmm": self.entry.vmm.binary, "firmware": self.entry.firmware.path}
        raw: dict[str, Any] = self.client.call("facts", wanted, timeout_s=_FACTS_TIMEOUT_S)
        return decode_facts(raw, now_ns=time.time_ns())

    @cached_property
    def readiness(self) -> list[Row]:
        """The rows of `--sev-check`."""
        return judge(self.facts, self.entry)

    def require_ready(self) -> None:
        """Refuse to judge a VMM on a host that cannot run SEV-ES guests.

        :raise HostError: names every row that fails and what to do.
        """
        if not ready(self.readiness):
            rows = [row for row in self.readiness if row.state == "fail"]
            failing = "".join(f"\n  {row.name}: {row.value}. {row.advice}" for row in rows)
            raise HostError(f"not ready for SEV-ES; see --sev-check:{failing}", host=self.name)


def _bare(error: HostError) -> str:
    return error.message.removeprefix(f"{error.host}: ")
