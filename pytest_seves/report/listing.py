# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run would judge, requirement by requirement: the end of ``--collect-only``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from .catalogue import Requirement
from .summary import order


def lines(requirements: Iterable[Requirement], tests: Mapping[str, list[str]], width: int) -> list[str]:
    """A line for each requirement that has tests, and beneath it each test with its cases.

    :param tests: names of collected tests by requirement id, ``test_it[1vcpu-ES]``.
    :param width: of the terminal, in columns.
    """
    known = {requirement.id: requirement for requirement in requirements}
    column = max((len(identifier) for identifier in tests), default=0)
    out: list[str] = []
    for identifier in sorted(tests, key=order):
        requirement = known[identifier]
        line = f"{identifier:<{column}}  {requirement.level:<6}  {requirement.sentence}"
        indent = " " * (column + 10)
        out += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
        for name, cases in _cases(tests[identifier]).items():
            text = f"{name}: {', '.join(cases)}" if cases else name
            out += textwrap.wrap(
                text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
            )
    return out


def _cases(names: Iterable[str]) -> dict[str, list[str]]:
    """Cases of each test, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        test, bracket, case = name.partition("[")
        found.setdefault(test, []).extend([case.removesuffix("]")] if bracket else [])
    return found
