# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is being judged: what its lab file says, what it is, and the line to it."""

from __future__ import annotations

import time
from functools import cached_property
from types import TracebackType
from typing import Any

from pytest_seves.errors import HostError
from pytest_seves.progress import SILENT, Progress

from .client import AgentClient, open_client
from .facts import HostFacts, decode_facts
from .inventory import LabHost
from .readiness import Row, judge, ready

_FACTS_TIMEOUT_S = 60.0


class Target:
    """One host, connected on first use; a context manager that ends the connection.

    :param entry: its lab file.
    :param progress: told what takes long.
    """

    def __init__(self, entry: LabHost, progress: Progress = SILENT) -> None:
        self.entry = entry
        self.progress = progress
        self.name = entry.name

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client: AgentClient | None = self.__dict__.pop("client", None)
        if client is not None:
            client.close()

    @cached_property
    def client(self) -> AgentClient:
        """The agent on the host.

        :raise ConnectError, AgentError: it cannot be reached or started.
        """
        with self.progress.work(f"{self.name}: connecting"):
            return open_client(self.entry)

    @cached_property
    def facts(self) -> HostFacts:
        """What the host is, asked once."""
        wanted = {"vmm": self.entry.vmm.binary, "firmware": self.entry.firmware.path}
        client = self.client
        with self.progress.work(f"{self.name}: looking at the host"):
            raw: dict[str, Any] = client.call("facts", wanted, timeout_s=_FACTS_TIMEOUT_S)
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
