# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run would judge, as people read it."""

from __future__ import annotations

from pytest_seves.report.catalogue import Requirement
from pytest_seves.report.listing import lines

REQUIREMENTS = [Requirement("A-2", "Second.", "must", "d"), Requirement("A-10", "Tenth.", "should", "d")]


def test_cases_are_gathered_beneath_their_requirement() -> None:
    """Requirements in the order of their numbers, each test once, with its cases in order."""
    tests = {"A-10": ["test_z"], "A-2": ["test_it[1vcpu-ES]", "test_other", "test_it[2vcpu-ES]"]}
    assert lines(REQUIREMENTS, tests, 80) == [
        "A-2   must    Second.",
        "              test_it: 1vcpu-ES, 2vcpu-ES",
        "              test_other",
        "A-10  should  Tenth.",
        "              test_z",
    ]


def test_long_lists_are_wrapped() -> None:
    """No line is longer than the terminal."""
    tests = {"A-2": [f"test_it[{count}vcpu-ES+NODBG]" for count in range(40)]}
    shown = lines(REQUIREMENTS, tests, 60)
    assert max(map(len, shown)) <= 60
    assert " ".join(shown).count("vcpu-ES+NODBG") == 40


def test_nothing_collected() -> None:
    """No requirement, no line."""
    assert lines(REQUIREMENTS, {}, 80) == []
