# SPDX-License-Identifier: GPL-2.0-or-later
"""The closing table."""

from __future__ import annotations

from pytest_seves.report.catalogue import Requirement
from pytest_seves.report.summary import Tally, lines

REQUIREMENTS = [Requirement("A-2", "Second.", "must", "d"), Requirement("A-10", "Tenth.", "should", "d")]


def tally(*outcomes: str) -> Tally:
    """A tally of these outcomes."""
    made = Tally()
    for number, outcome in enumerate(outcomes):
        made.add(outcome, f"test_{number}", "because")
    return made


def test_the_worst_outcome_is_the_verdict() -> None:
    """One failure among many passes is a failure."""
    assert tally("passed", "failed", "undecided").verdict == "failed"
    assert tally("passed", "undecided").verdict == "undecided"
    assert tally("skipped", "passed").verdict == "passed"
    assert tally("skipped").verdict == "skipped"
    assert tally("passed").verdict == "passed"


def test_one_line_each_in_the_order_of_numbers() -> None:
    """Requirements are ordered by number, and the first failure stands beneath its line."""
    verdicts = {("lab1", "A-10"): tally("passed"), ("lab1", "A-2"): tally("passed", "failed")}
    assert lines(REQUIREMENTS, verdicts, 80) == [
        ("failed", "A-2   must    1 failed, 1 passed        Second."),
        ("failed", "      test_1: because"),
        ("passed", "A-10  should  1 passed                  Tenth."),
    ]


def test_a_reason_is_told_once() -> None:
    """Requirements that share a launch that failed do not repeat how it failed."""
    verdicts = {("a", "A-2"): tally("undecided"), ("a", "A-10"): tally("undecided")}
    shown = [line for _, line in lines(REQUIREMENTS, verdicts, 80)]
    assert (shown[1], shown[3]) == ("      test_0: because", "      test_0: as A-2")


def test_a_known_defect_is_told_with_its_reference() -> None:
    """What is expected to fail says why, once."""
    verdicts = {("a", "A-2"): tally("known defect", "known defect", "passed")}
    assert [line for _, line in lines(REQUIREMENTS, verdicts, 80)] == [
        "A-2  must    2 known defect, 1 passed  Second.",
        "     because",
    ]


def test_hosts_are_told_apart() -> None:
    """With several hosts each has its own line."""
    verdicts = {("b", "A-2"): tally("failed"), ("a", "A-2"): tally("passed")}
    shown = [line for _, line in lines(REQUIREMENTS, verdicts, 80)]
    assert shown[0].startswith("A-2  must    a  1 passed")
    assert shown[1].startswith("A-2  must    b  1 failed")


def test_a_long_line_is_cut_to_the_terminal() -> None:
    """No line wraps."""
    long = [Requirement("A-2", "word " * 50, "must", "d")]
    ((_, line),) = lines(long, {("a", "A-2"): tally("passed")}, 60)
    assert len(line) <= 60
    assert line.endswith(" ...")


def test_the_evidence_of_the_first_failure() -> None:
    """Where evidence was kept, the directory of the first failure's stands beneath it."""
    made = tally("passed")
    made.add("failed", "test_1", "because", "/out/lab1/launches/001")
    made.add("failed", "test_2", "because", "/out/lab1/launches/002")
    shown = [line for _, line in lines(REQUIREMENTS, {("a", "A-2"): made}, 80)]
    assert shown[1:] == ["     test_1: because", "     evidence: /out/lab1/launches/001"]
