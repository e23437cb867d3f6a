# SPDX-License-Identifier: GPL-2.0-or-later
"""``--sev-replay DIR``: the suites judge a bundle, with no host and no VMM; which verdicts changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .blocked import HostBlocked
from .errors import RigError
from .evidence.bundle import Bundle, Result
from .guest.replayed import RecordedKvm, RecordedLauncher, RecordedLaunches, RecordedTarget
from .host.inventory import LabHost
from .options import Options
from .results import Reports, without_host
from .source import Given, Tell
from .text import one_line

if TYPE_CHECKING:
    from .host.target import Target

_SHOWN = 50


class Replayed:
    """Stands where :class:`pytest_seves.hosts.Hosts` does.

    :raise EvidenceError: the directory has no bundle that can be read.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.bundle = Bundle.open(root)
        self._targets = {name: RecordedTarget(self.bundle, name) for name in options.hosts}
        self._launches = {name: RecordedLaunches(self.bundle, name) for name in options.hosts}
        self._results = {(without_host(r.test, r.host), r.host): r for r in self.bundle.results}
        models = {name: self.bundle.about.hosts[name].model for name in options.hosts}
        self.entries = {name: LabHost(name, None, "", "", model=model) for name, model in models.items()}

    def result(self, test: str, host: str) -> Result | None:
        """What the bundle has of a test, by its node id; None for one that it does not know."""
        return self._results.get((without_host(test, host), host))

    def target(self, name: str) -> RecordedTarget:
        """The host called `name`."""
        return self._targets[name]

    def suite_launcher(self, name: str, test: str, tell: Tell, given: Given) -> RecordedLauncher:
        """`launch_guest` of one test."""
        return RecordedLauncher(
            self._targets[name], self._launches[name], self.result(test, name), tell, given
        )

    def suite_kvm(self, name: str, test: str, tell: Tell) -> RecordedKvm:
        """`kvm` of one test."""
        return RecordedKvm(self._targets[name], self.bundle, self.result(test, name))

    def connected(self) -> list[Target]:
        """No host is looked at."""
        return []

    def used(self, name: str) -> Target | None:
        """No host is looked at."""
        return None

    def counts(self) -> tuple[int, int]:
        """Launches that were judged again, and requests for a guest that they served."""
        own = self._launches.values()
        return sum(len(launches.used) for launches in own), sum(launches.served for launches in own)

    def without_keys(self, text: str) -> str:
        """The bundle has none."""
        return text

    def places(self) -> dict[str, dict[str, Any]]:
        """No host is started."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


class Replay:
    """A plugin, in the controller and in each xdist worker: recorded errors, and what changed."""

    def __init__(self, replayed: Replayed, options: Options) -> None:
        self._replayed = replayed
        self._options = options
        self._reports = Reports(options.hosts[0], str)
        self._same = 0
        self._new = 0
        self._changed: list[str] = []
        self._judged: set[tuple[str, str]] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """What was no verdict then is none now: the rig was broken, and the evidence is not there."""
        host = dict(item.user_properties).get("host")
        result = self._replayed.result(item.nodeid, str(host)) if host else None
        if result is not None and result.outcome == "blocked":
            raise HostBlocked(result.why, pytrace=False)
        if result is not None and result.rig:
            raise RigError(f"as recorded: {result.why}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Compare a test that has come to its end with what was recorded."""
        line = self._reports.add(report)
        if line is not None:
            self._compare(line)

    def _compare(self, line: dict[str, Any]) -> None:
        recorded = self._replayed.result(line["test"], line["host"])
        if recorded is None:
            self._new += 1
            return
        self._judged.add((recorded.test, recorded.host))
        if recorded.outcome == line["outcome"]:
            self._same += 1
            return
        reason = f": {line['why']}" if line["why"] else ""
        change = f"{recorded.outcome} then, {line['outcome']} now"
        self._changed.append(one_line(f"{line['test']} ({line['host']}): {change}{reason}"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was compared, and every verdict that changed."""
        if terminalreporter.config.getoption("collectonly"):
            return
        write = terminalreporter
        about = self._replayed.bundle.about
        write.section(f"replay of {one_line(str(self._replayed.bundle.root))}")
        by = one_line(f"{about.suite.get('name')} {about.suite.get('version')}")
        write.line(one_line(f"recorded by {by}, run {about.run}, begun {about.started}"))
        for note in self._replayed.bundle.notes:
            write.line(one_line(note), yellow=True)
        hosts = set(self._options.hosts)
        left = sum(
            (r.test, r.host) not in self._judged for r in self._replayed.bundle.results if r.host in hosts
        )
        counts = [f"{self._same} verdicts are as recorded", f"{len(self._changed)} changed"]
        counts += [f"{self._new} tests are new"] if self._new else []
        counts += [f"{left} recorded tests were not judged again"] if left else []
        write.line(", ".join(counts) + ".", yellow=bool(self._changed))
        for change in self._changed[:_SHOWN]:
            write.line(f"  {change}", yellow=True)
        if len(self._changed) > _SHOWN:
            write.line(f"  and {len(self._changed) - _SHOWN} more", yellow=True)
