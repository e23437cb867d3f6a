# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts of a run, by host and requirement: gathered in the controller, shown at the end, written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .blocked import Blocked
from .guest.defects import DEFECTS
from .options import Options
from .report import catalogue, listing, markdown, summary
from .reports import message, outcome
from .source import Source

_WHY = 400
_COLOURS: dict[str, dict[str, bool]] = {
    "passed": {"green": True},
    "failed": {"red": True},
    "error": {"red": True},
    "unexpected pass": {"yellow": True},
    "undecided": {"yellow": True},
    "known defect": {"yellow": True},
    "skipped": {"yellow": True},
}


class Verdicts:
    """A plugin of the controller.

    :ivar launches: what workers launched, and how many requests that served.
    """

    def __init__(self, config: pytest.Config, options: Options, source: Source, blocked: Blocked) -> None:
        self._config = config
        self._options = options
        self._source = source
        self._blocked = blocked
        self._verdicts: dict[tuple[str, str], summary.Tally] = {}
        self._catalogues: set[Path] = set()
        self._collected: dict[str, list[str]] = {}
        self._launches = self._served = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which requirement each collected test decides."""
        for item in session.items:
            requirement = dict(item.user_properties).get("requirement")
            if requirement and (path := catalogue.find(item.path.parent)):
                self._catalogues.add(path)
                self._collected.setdefault(str(requirement), []).append(item.name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what a test decided."""
        properties = dict(report.user_properties)
        requirement = properties.get("requirement")
        decisive = report.when == "call" or report.outcome != "passed"
        if requirement and decisive:
            host = str(properties.get("host", self._options.hosts[0]))
            tally = self._verdicts.setdefault((host, str(requirement)), summary.Tally())
            test, evidence = report.nodeid.rpartition("::")[2], str(properties.get("evidence", ""))
            tally.add(outcome(report), test, self._source.without_keys(why(report)), evidence)
            file = self._config.rootpath / report.nodeid.partition("::")[0]
            if path := catalogue.find(file.parent):
                self._catalogues.add(path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add up what an xdist worker did."""
        launches, served = getattr(node, "workeroutput", {}).get("sev_launches", (0, 0))
        self._launches += launches
        self._served += served

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line for each requirement, with counts; of a mere collection, what would be judged."""
        write = terminalreporter
        if self._config.getoption("collectonly"):
            self._list(write)
        if not self._verdicts:
            return
        self._section(write)
        for note in self._notes():
            write.line(note, yellow=True)
        for verdict, line in summary.lines(self._requirements(), self._verdicts, write._tw.fullwidth):
            write.line(line, **_COLOURS.get(verdict, {}))
        launches, served = self.counts()
        write.line(f"{launches} launches served {served} requests for a guest.")
        if self._options.artifacts:
            write.line(f"evidence: {self._options.artifacts}")

    @property
    def catalogues(self) -> frozenset[Path]:
        """The catalogues whose requirements were decided."""
        return frozenset(self._catalogues)

    def counts(self) -> tuple[int, int]:
        """Launches of the whole run, and requests for a guest that they served."""
        launches, served = self._source.counts()
        return launches + self._launches, served + self._served

    def write(self) -> None:
        """`verdicts.json` and `summary.md` among the evidence, where there are verdicts and a place.

        ``{HOST: {"requirements": {ID: {verdict, counts, first, evidence}}, "blocked": {...} or null}}``
        """
        folder, blocked = self._options.artifacts, self._blocked.rows()
        if folder is None or not (self._verdicts or blocked):
            return
        by_host: dict[str, dict[str, Any]] = {}
        for (host, requirement), tally in sorted(self._verdicts.items()):
            counts, first = dict(tally.counts), tally.first
            entry = {"verdict": tally.verdict, "counts": counts, "first": first, "evidence": tally.evidence}
            by_host.setdefault(host, {})[requirement] = entry
        verdicts = {
            host: {"requirements": by_host.get(host, {}), "blocked": blocked.get(host)}
            for host in sorted({*by_host, *blocked})
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=2) + "\n")
        told = markdown.render(self._verdicts, self._notes(), requirements=self._requirements())
        (folder / "summary.md").write_text(told)

    def _notes(self) -> list[str]:
        """What must not be taken from the verdicts."""
        model = any(entry.model for entry in self._source.entries.values())
        notes = ["The model is software: nothing here is a qualification of hardware."] if model else []
        notes += [
            f"{row['why']}, after {row['after']} of {row['of']} tests"
            for row in self._blocked.rows().values()
        ]
        return notes + [
            f"--sev-defect {name}: the {_culprit(name)} was made wrong on purpose."
            for name in self._options.defects
        ]

    def _list(self, write: Any) -> None:
        if not self._collected or self._config.getoption("verbose") < 0:  # -q: node ids alone, for scripts
            return
        self._section(write)
        for line in listing.lines(self._requirements(), self._collected, write._tw.fullwidth):
            write.line(line)

    def _section(self, write: Any) -> None:
        write.section("requirements on " + ", ".join(self._options.hosts))

    def _requirements(self) -> list[catalogue.Requirement]:
        return [r for path in self._catalogues for r in catalogue.load(path).values()]


def _culprit(defect: str) -> str:
    """What a defect makes wrong; a bundle may name one that is not known here."""
    return DEFECTS[defect].culprit if defect in DEFECTS else "VMM or the model's kernel"


def why(report: pytest.TestReport) -> str:
    """The reason in one line."""
    return message(report).partition("\n")[0].rstrip(":")[:_WHY]
