# SPDX-License-Identifier: GPL-2.0-or-later
"""``--sev-provision``: a host is brought to what its lab file declares, and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from pytest_seves.errors import AgentRemoteError, HostError
from pytest_seves.host.client import AgentClient, open_client
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.lease import Tenant, take
from pytest_seves.host.provision_steps import Look, Step, ask, look, steps
from pytest_seves.progress import SILENT, Progress

MODES = ("check", "apply", "revert")
_REMOVE_S = 1800.0

Say = Callable[[str], None]


class Provisioning:
    """The work on one host, which nobody else uses meanwhile; a context manager that ends its agents.

    :param say: takes lines for people: the plan, and each step when it starts.
    :param progress: told of steps that take long.
    :param tenant: the run that this is part of; this process alone, if None.
    """

    def __init__(
        self, entry: LabHost, say: Say, progress: Progress = SILENT, tenant: Tenant | None = None
    ) -> None:
        self.entry = entry
        self._tenant = tenant or Tenant.here()
        self._print = say
        self._progress = progress
        self._stack = ExitStack()
        self._user: AgentClient | None = None
        self._root: AgentClient | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            client = undo.enter_context(open_client(replace(self.entry, sudo=())))
            take(client, self._tenant, self._print)
            self._stack.enter_context(undo.pop_all())
        self._user = client
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, mode: str) -> bool:
        """Do what `mode` says; True when the host is then as it is declared, or all was taken back."""
        return {"check": self.check, "apply": self.apply, "revert": self.revert}[mode]()

    def check(self) -> bool:
        """Print the plan; True when there is nothing to do."""
        return not any(step.todo for step in self._plan())

    def apply(self) -> bool:
        """Print the plan and do it.

        :raise HostError: a step failed. What was done before it stands, and the record of it.
        """
        plan = [step for step in self._plan() if step.todo]
        self._require_root([step.what for step in plan if step.needs_root and not step.by_hand])
        for step in plan:
            if step.act is not None and not step.by_hand:
                self._say(f"{step.doing} ...")
                try:
                    with self._progress.work(f"{self.entry.name}: {step.doing}"):
                        told = step.act(self._hand(step.needs_root))
                except HostError:
                    self._say("stopped: what was done stands; apply goes on from here, revert takes it back")
                    raise
                if told:
                    self._say(told)
        left = [step for step in self._steps() if step.todo] if plan else []
        for step in left:
            self._say(f"left to do: {step.what}: is {step.state}; wanted {step.wanted}: {step.todo}")
        return not left

    def revert(self) -> bool:
        """Take back what was changed, last change first; what somebody else changed since is left, and said.

        :raise HostError: root's changes cannot be reached without a sudo rule.
        """
        clean, found = True, 0
        looks = self._looks()
        if looks[False]["root_changed"] and looks[False]["uid"] != 0 and not self.entry.sudo:
            self._require_root(["taking back what root changed"])
        for root, seen in looks.items():
            for change in reversed(seen["changes"]):
                found += 1
                what = change.get("path") or " ".join(change.get("names", [change.get("group")]))
                self._say(f"taking back {change['kind']} {what} ...")
                try:
                    ask(self._hand(root), "undo", _REMOVE_S, number=change["number"])
                except AgentRemoteError as error:
                    self._say(error.message)
                    clean = False
                else:
                    self._warn(str(change.get("path", "")))
        if not found:
            self._say("nothing to take back")
        return clean

    def _say(self, text: str) -> None:
        self._print(f"{self.entry.name}: {text}")

    def _warn(self, path: str) -> None:
        if path.endswith("pytest-seves.conf") and "modprobe" in path:
            self._say("modules keep the parameters that they were loaded with until a reload or a reboot")
        elif path.endswith(".rules"):
            self._say("devices keep group and mode until udev handles them again, or a reboot")

    def _plan(self) -> list[Step]:
        plan = list(self._steps())
        for step in plan:
            todo = step.todo or "nothing to do"
            self._say(f"{step.what}: is {step.state}; wanted {step.wanted}: {todo}")
        if not any(step.todo for step in plan):
            self._say("nothing to do")
        return plan

    def _steps(self) -> list[Step]:
        looks = self._looks()
        return list(steps(self.entry, looks.get(True, looks[False]), looks[False]))

    def _looks(self) -> dict[bool, Look]:
        """What the user sees, and what root sees where there is a sudo rule."""
        looks = {False: look(self._hand(False), self.entry)}
        if self.entry.sudo and looks[False]["uid"] != 0:
            looks[True] = look(self._hand(True), self.entry)
        return looks

    def _require_root(self, what: list[str]) -> None:
        if what and not self.entry.sudo and ask(self._hand(False), "who")["uid"] != 0:
            raise HostError(
                f"provision: user {self.entry.user!r} is not root, and [host] has no sudo rule; needed for:"
                f' {"; ".join(what)}. Write sudo = ["sudo", "-n"] into the lab file',
                host=self.entry.name,
            )

    def _hand(self, root: bool) -> AgentClient:
        """The agent that acts: the user's own, or root's."""
        if self._user is None:
            raise ValueError("not entered")
        if not root or not self.entry.sudo:
            return self._user
        if self._root is None:
            self._root = self._stack.enter_context(open_client(self.entry))
        return self._root
