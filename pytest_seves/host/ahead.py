# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests that are sent before a test makes them, so that it need not wait for the way to a distant host.

That a test makes one is a hint, and no more: the answer is the test's if it makes the very same request, and
else nobody's. The agent begins with one when nothing else of ours runs there, so the host does no more at a
time than without.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AgentClient, Call


class Ahead:
    """Those of one agent.

    :ivar since: when what was answered last had been asked for, in seconds since the epoch.
    :ivar noted: operations with their arguments that tests asked for, until somebody takes them.
    """

    def __init__(self, client: AgentClient) -> None:
        self.since = 0.0
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self._client = client
        self._sent: dict[str, tuple[Call, float]] = {}
        self._launched: set[str] = set()

    def send(self, op: str, args: dict[str, Any]) -> str | None:
        """Ask ahead; a name for the request, None if the like was launched or is asked for already.

        :raise HostError: the agent or the connection is gone.
        """
        name = _name(op, args)
        if name in self._sent or name in self._launched:
            return None
        self._sent[name] = self._client.ask(op, args, ahead=True), time.time()
        return name

    def waits(self, name: str) -> bool:
        """Whether no test has made that request since."""
        return name in self._sent

    @property
    def under_way(self) -> int:
        """How many have no answer yet."""
        return sum(not call.answered.is_set() for call, _ in self._sent.values())

    def call(self, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """As :meth:`AgentClient.call`; what was asked for ahead is not asked for again."""
        self.noted.append((op, args))
        name = _name(op, args)
        if op == "observe":  # whoever wants that guest again is given its evidence
            self._launched.add(name)
        sent = self._sent.pop(name) if name in self._sent else (self._client.ask(op, args), time.time())
        call, self.since = sent
        return call.result(timeout_s)

    def settle(self, timeout_s: float) -> None:
        """Wait until none is under way: who wants to be alone on the host must not have any."""
        deadline = time.monotonic() + timeout_s
        for call, _ in self._sent.values():
            call.answered.wait(max(deadline - time.monotonic(), 0))


def _name(op: str, args: dict[str, Any]) -> str:
    return json.dumps([op, {name: args[name] for name in args if name != "files"}], sort_keys=True)
