# SPDX-License-Identifier: GPL-2.0-or-later
"""Which xdist worker a test goes to: one launch is made by one worker.

xdist's own groups (`xdist_group`) have no effect with pytest 9.2 (pytest-xdist issue 1386), so tests are told
apart by their ids, which is all that the controller knows of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

_VCPUS = re.compile(r"[0-9]+vcpu")
#: In ids, the VMM's own choice of init path, which other tests do not name.
_OWN = "own"


class LaunchScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """As `--dist loadscope`, but by launch."""

    def __init__(self, config: pytest.Config, log: Producer | None, hosts: Sequence[str]) -> None:
        super().__init__(config, log)
        self._hosts = hosts

    def _split_scope(self, nodeid: str) -> str:
        return launch_of(nodeid, self._hosts)

    # xdist 3.8 hangs once a worker has died: it queues again what that one had finished, as scopes without
    # tests, and the test that it died of; and the last test of the only scope that it gives to the new worker
    # waits for a next one (pytest-xdist issues 1323, 1327, 1378; fixed after 3.8 by 1324 and 1328).

    def remove_node(self, node: WorkerController) -> str | None:
        """Queue what is left of a node's work, without the test that it died of, which is returned."""
        work = self.assigned_work.pop(node)
        left = [nodeid for scope in work.values() for nodeid, done in scope.items() if not done]
        if not left:
            return None
        for name, scope in work.items():
            if rest := {nodeid: False for nodeid in scope if nodeid in left[1:]}:
                self.workqueue[name] = dict.fromkeys(scope, True) | rest
        for other in self.assigned_work:
            self._reschedule(other)
        return str(left[0])

    def schedule(self) -> None:
        """As xdist's; a node that came later gets a second scope, as the first ones did, or its end."""
        again = self.collection is not None
        super().schedule()
        for node in self.nodes if again else ():
            self._reschedule(node)


def launch_of(nodeid: str, hosts: Sequence[str]) -> str:
    """The same for tests that share a launch.

    Tests with a number of vCPUs go by their parameters. The others name their guests themselves, and go by
    file. Where there are several hosts, each test's id ends with the name of one.
    """
    file, _, case = nodeid.partition("::")
    parameters = case.partition("[")[2].removesuffix("]")
    host = max((name for name in hosts if f"-{parameters}".endswith(f"-{name}")), key=len, default="")
    words = parameters.removesuffix(host).strip("-").split("-")
    if any(_VCPUS.fullmatch(word) for word in words):
        return "-".join(sorted({*words} - {_OWN})) + f"@{host}"
    return f"{file}@{host}"
