# SPDX-License-Identifier: GPL-2.0-or-later
"""Count what ran, and fail when a test was skipped for a reason that nobody allowed.

A suite that skips everything is green and says nothing. Each line of the list of allowed skips is a regular
expression, searched in ``test: reason``; the comment above it says why the test need not run everywhere. How
often each was the reason is printed: what never runs anywhere is seen there. Expected failures are not skips
here: they ran.

Usage: python .ci/skips.py ALLOWED RESULTS.xml...
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def allowed_reasons(path: Path) -> list[re.Pattern[str]]:
    """The patterns of the list; blank lines and comments are for the reader."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def outcomes(path: Path) -> Iterator[tuple[str, str]]:
    """(outcome, ``test: reason``) of each test in a JUnit file."""
    for case in ET.parse(path).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif skipped is not None and skipped.get("type") != "pytest.xfail":
            outcome = "skipped"
        else:
            outcome = "passed"
        reason = skipped.get("message", "") if skipped is not None else ""
        yield outcome, f"{case.get('classname')}::{case.get('name')}: {reason}"


def main(allowed: str, *results: str) -> int:
    """Judge the files; 1 when a skip was not allowed or a file holds no test that ran."""
    patterns = allowed_reasons(Path(allowed))
    wrong: list[str] = []
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    reasons: Counter[str] = Counter()
    for result in map(Path, results):
        cases = list(outcomes(result))
        for outcome, case in cases:
            totals[outcome] += 1
            if outcome != "skipped":
                continue
            allowing = next((pattern.pattern for pattern in patterns if pattern.search(case)), None)
            if allowing is None:
                wrong.append(f"skipped, and not in {allowed}: {case}")
            else:
                reasons[allowing] += 1
        if all(outcome == "skipped" for outcome, _ in cases):
            wrong.append(f"no test ran: {result.name}")
    for reason, count in reasons.most_common():
        print(f"{count} skipped, as is allowed: {reason}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(", ".join(f"{count} {outcome}" for outcome, count in totals.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
