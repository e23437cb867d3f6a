# SPDX-License-Identifier: GPL-2.0-or-later
"""`--dist loadgroup` that goes on when a worker has died. To be deleted once xdist's own does.

xdist 3.8 queues again what a dead worker had finished, as units without tests, and the test that it died of;
and gives the new worker one unit, whose last test waits for a next one. Either way the run hangs
(pytest-xdist #1323, #1327, #1378; fixed after 3.8 by #1324 and #1328).
"""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController


class Groups(LoadGroupScheduling):  # type: ignore[misc]  # xdist publishes no types
    """The scheduler of a run."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Queue what is left of the node's work; the test that it died of, which is not run again."""
        work = self.assigned_work.pop(node)
        left = [nodeid for unit in work.values() for nodeid, done in unit.items() if not done]
        if not left:
            return None
        for scope, unit in work.items():
            if rest := {nodeid: False for nodeid in unit if nodeid in left[1:]}:
                self.workqueue[scope] = dict.fromkeys(unit, True) | rest
        for other in self.assigned_work:
            self._reschedule(other)
        return str(left[0])

    def schedule(self) -> None:
        """As xdist's; a node that came later gets a second unit, as the first ones did, or its end."""
        again = self.collection is not None
        super().schedule()
        for node in self.nodes if again else ():
            self._reschedule(node)
