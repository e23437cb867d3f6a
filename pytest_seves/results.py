# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each test of a host, put together in the controller from the reports of its phases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from .reports import outcome
from .text import one_line
from .verdicts import why

_SIMPLE = (str, int, float, bool, type(None))


class Reports:
    """Reports of tests that have not come to their end.

    :param host: the host of a test that names none.
    :param without_keys: takes out of a text what is not to be written down.
    """

    def __init__(self, host: str, without_keys: Callable[[str], str]) -> None:
        self._host = host
        self._without_keys = without_keys
        self._tests: dict[str, list[pytest.TestReport]] = {}

    def add(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """The test's line in results.jsonl, when this was its last report."""
        if {"host", "requirement"}.isdisjoint(dict(report.user_properties)):
            return None
        self._tests.setdefault(report.nodeid, []).append(report)
        return self._line(self._tests.pop(report.nodeid)) if report.when == "teardown" else None

    def rest(self) -> list[dict[str, Any]]:
        """Lines of tests that had no teardown: their worker crashed."""
        lines = [self._line(reports) for reports in self._tests.values()]
        self._tests.clear()
        return lines

    def _line(self, reports: list[pytest.TestReport]) -> dict[str, Any]:
        """The first report that failed decides, then one that was skipped, then the call."""
        called = [report for report in reports if report.when == "call"] or reports
        failed = [report for report in reports if report.failed]
        decisive = (failed or [report for report in reports if report.skipped] or called)[0]
        properties = dict(decisive.user_properties)
        decided = outcome(decisive)
        refused = hasattr(decisive, "sev_blocked") and decisive.longreprtext.startswith("blocked: ")
        return {
            "test": decisive.nodeid,
            "host": str(properties.get("host", self._host)),
            "requirement": properties.get("requirement"),
            "outcome": "blocked" if refused else decided,
            "why": one_line(self._without_keys(why(decisive))) if decided != "passed" else "",
            "rig": bool(getattr(decisive, "sev_rig", False)),
            "parameters": getattr(reports[0], "sev_parameters", {}),
            "started": datetime.fromtimestamp(reports[0].start, UTC).isoformat(),
            "duration_s": round(sum(report.duration for report in reports), 6),
            "evidence": getattr(reports[-1], "sev_evidence", []),
        }


def note(report: pytest.TestReport, item: pytest.Item, evidence: list[dict[str, Any]]) -> None:
    """Put on a report, which crosses xdist, what its line says beside the outcome."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    report.sev_parameters = {  # type: ignore[attr-defined]
        name: _simple(value)
        for name, value in parameters.items()
        if isinstance(value, _SIMPLE) and name != "sev_host"
    }
    report.sev_evidence = list(evidence)  # type: ignore[attr-defined]


def without_host(name: str, host: str) -> str:
    """A test's name as it is with one host alone: with several, it ends with its host's."""
    return name.replace(f"-{host}]", "]").replace(f"[{host}]", "")


def _simple(value: object) -> object:
    """The same without a class of its own: JSON and xdist know no enumerations."""
    if isinstance(value, bool) or value is None:
        return value
    return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
