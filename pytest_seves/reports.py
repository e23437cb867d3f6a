# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of tests: what each decided, and the text of guests and hosts in them made harmless.

A test fails with what a VMM, a guest or a host said, in messages, compared values and captured output. All of
that passes through a report, on its way to the terminal, JUnit, Allure, the verdicts and other processes.
"""

from __future__ import annotations

from typing import Any

import pytest

from .text import plain

#: Characters of a line, and lines of a part, that a report shows.
LONGEST_LINE, MOST_LINES = 4000, 1000


def outcome(report: pytest.TestReport) -> str:
    """What the report decides, in the words of :data:`pytest_seves.report.summary.OUTCOMES`."""
    if getattr(report, "sev_undecided", False):
        return "undecided"
    if hasattr(report, "wasxfail"):
        return "known defect" if report.skipped else "unexpected pass"
    if report.failed and report.when != "call":
        return "error"
    return str(report.outcome)


def message(report: pytest.TestReport) -> str:
    """Why, in full: the message of the exception, or the reason that was given."""
    if hasattr(report, "wasxfail"):
        reason = str(report.wasxfail).removeprefix("reason: ")
        return reason if report.skipped else f"passed all the same: {reason}"
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr or "").removeprefix("pytest_seves.errors.")


def make_harmless(report: pytest.TestReport) -> None:
    """Escape and shorten what the report shows."""
    report.sections = [(title, _block(text)) for title, text in report.sections]
    report.user_properties = [
        (name, plain(value, LONGEST_LINE) if isinstance(value, str) else value)
        for name, value in report.user_properties
    ]
    if hasattr(report, "wasxfail"):
        report.wasxfail = plain(report.wasxfail, LONGEST_LINE)
    shown: Any = report.longrepr
    if isinstance(shown, str):
        report.longrepr = _block(shown)
    elif isinstance(shown, tuple):
        path, line, reason = shown
        report.longrepr = (path, line, plain(reason, LONGEST_LINE))
    for traceback, crash, _ in getattr(shown, "chain", ()):
        if crash is not None:
            crash.message = _block(crash.message)
        for entry in traceback.reprentries:
            _entry(entry)


def _entry(entry: Any) -> None:
    entry.lines = _lines(entry.lines)
    if arguments := getattr(entry, "reprfuncargs", None):
        arguments.args = [(name, plain(str(value), LONGEST_LINE)) for name, value in arguments.args]
    if variables := getattr(entry, "reprlocals", None):
        variables.lines = _lines(variables.lines)


def _block(text: str) -> str:
    return "\n".join(_lines(text.split("\n")))


def _lines(lines: list[str]) -> list[str]:
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        gap = f"[... {len(lines) - 2 * half} lines ...]"
        lines = [*lines[:half], gap, *lines[-half:]]
    return [plain(line, LONGEST_LINE) for line in lines]
