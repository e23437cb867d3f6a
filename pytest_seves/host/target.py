# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is being judged: what its lab file says, what it is, and the line to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

from pytest_seves.errors import ConnectError, ConnectionLost, HostError, HostUnreachable, LeaseError
from pytest_seves.progress import SILENT, Progress

from .client import AgentClient, open_client
from .facts import HostFacts, decode_facts
from .health import Health
from .inventory import LabHost
from .lease import Say, Tenant, say_nothing, take
from .readiness import Row, judge, ready

_FACTS_TIMEOUT_S = 60.0


class Target:
    """One host, connected on first use; a context manager that ends the connection.

    :param entry: its lab file.
    :param tenant: the run that uses the host; this process alone, if None.
    :param say: is told while another run has the host.
    :param progress: told what takes long.
    :param keep_facts: given what the host's agent answered, and when (ns since the epoch).
    """

    def __init__(
        self,
        entry: LabHost,
        tenant: Tenant | None = None,
        say: Say = say_nothing,
        progress: Progress = SILENT,
        keep_facts: Callable[[dict[str, Any], int, LabHost], None] = lambda raw, now_ns, entry: None,
    ) -> None:
        self.entry = entry
        self._keep_facts = keep_facts
        self.progress = progress
        self.name = entry.name
        self.health = Health(entry.name)
        self._tenant = tenant or Tenant.here()
        self._say = say
        self._stack = ExitStack()
        self._refused: LeaseError | None = None

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        self.__dict__.pop("client", None)
        self._stack.close()

    @property
    def connected(self) -> bool:
        """Whether an agent was started."""
        return "client" in self.__dict__

    @cached_property
    def client(self) -> AgentClient:
        """The agent on the host, which is this run's from then on.

        That it is reached is tried twice: nothing has begun there then.

        :raise ConnectError, AgentError: it cannot be reached or started.
        :raise LeaseError: another run does not let go of it in time; asked again, at once.
        """
        if self._refused:
            raise self._refused
        with ExitStack() as undo:
            client = undo.enter_context(self._reach())
            try:
                take(client, self._tenant, self._say)
            except LeaseError as error:
                self._refused = error
                raise
            self._stack.enter_context(undo.pop_all())
        return client

    def _reach(self) -> AgentClient:
        with self.progress.work(f"{self.name}: connecting"):
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
        # The model's kernel is a name: a file of that name on this machine has nothing to do with it.
        kernel = self.entry.guest.kernel or ("" if self.entry.model else None)
        guest = {"kernel": kernel, "msr_module": self.entry.guest.msr_module}
        wanted = {"vmm": self.entry.vmm.binary, "firmware": self.entry.firmware.path, **guest}
        client = self.client
        with self.progress.work(f"{self.name}: looking at the host"):
            raw: dict[str, Any] = client.call("facts", wanted, timeout_s=_FACTS_TIMEOUT_S)
        now_ns = time.time_ns()
        self._keep_facts(raw, now_ns, self.entry)
        return decode_facts(raw, now_ns=now_ns)

    def side_by_side(self, *, es: bool = True) -> int | None:
        """As many guests as the lab file allows, and SEV-ES guests as ASIDs are free to our runs; None: any.

        The limit on locked memory is one of each VM, and --sev-check looks at it.
        """
        free = self.facts.free_es_asids if es else None
        return min(filter(None, (self.entry.max_guests, free)), default=None)

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
