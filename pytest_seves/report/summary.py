# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts by requirement, and the table that closes a run."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .catalogue import Requirement

#: Outcomes from worst to best, in the words of the report.
OUTCOMES = ("failed", "error", "undecided", "known defect", "unexpected pass", "passed", "skipped")
#: Outcomes of which a single one decides the whole requirement.
BAD = ("failed", "error", "undecided")


@dataclass
class Tally:
    """Outcomes of the tests of one requirement on one host."""

    counts: Counter[str] = field(default_factory=Counter)
    #: First test that did not pass, and why, in one line.
    first: tuple[str, str] | None = None
    #: Where the evidence of that test is, where it was kept.
    evidence: str = ""
    #: Known defects that were met, or that passed all the same, each with its reference.
    known: set[str] = field(default_factory=set)

    def add(self, outcome: str, test: str, why: str, evidence: str = "") -> None:
        """Count one test.

        :param evidence: the directory with its evidence, if any was kept.
        """
        self.counts[outcome] += 1
        if outcome in ("known defect", "unexpected pass"):
            self.known.add(why)
        if outcome in BAD and self.first is None:
            self.first = (test, why)
            self.evidence = evidence

    @property
    def verdict(self) -> str:
        """The worst outcome; a requirement that was decided where it applies is not skipped."""
        return next((outcome for outcome in OUTCOMES if self.counts[outcome]), "not run")


Verdicts = Mapping[tuple[str, str], Tally]


def lines(requirements: Iterable[Requirement], verdicts: Verdicts, width: int) -> list[tuple[str, str]]:
    """(verdict, line) for each requirement that was asked, with notes beneath it.

    :param verdicts: tallies by (host, requirement id).
    :param width: of the terminal, in columns.
    """
    known = {requirement.id: requirement for requirement in requirements}
    hosts = sorted({host for host, _ in verdicts})
    column = max((len(identifier) for _, identifier in verdicts), default=0)
    told: dict[str, str] = {}  # a reason is told once: many requirements share a launch that failed
    out: list[tuple[str, str]] = []
    for identifier in sorted({identifier for _, identifier in verdicts}, key=order):
        requirement = known.get(identifier)
        level, sentence = (requirement.level, requirement.sentence) if requirement else ("", "")
        for host in hosts:
            tally = verdicts.get((host, identifier))
            if tally is None:
                continue
            counts = ", ".join(f"{tally.counts[name]} {name}" for name in OUTCOMES if tally.counts[name])
            where = f"{host}  " if len(hosts) > 1 else ""
            line = f"{identifier:<{column}}  {level:<6}  {where}{counts:<24}  {sentence}"
            out.append((tally.verdict, line if len(line) <= width else line[: width - 4] + " ..."))
            notes = sorted(tally.known)
            if tally.first:
                test, why = tally.first
                notes.append(f"{test}: " + (f"as {told[why]}" if why in told else why))
                told.setdefault(why, identifier)
                notes += [f"evidence: {tally.evidence}"] if tally.evidence else []
            out += [(tally.verdict, part) for note in notes for part in _indented(note, column + 2, width)]
    return out


def _indented(text: str, columns: int, width: int) -> list[str]:
    indent = " " * columns
    more = indent + "  "
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=more, break_on_hyphens=False)


def order(identifier: str) -> tuple[str, int]:
    """Sort key of requirement ids: ``VMSA-10`` comes after ``VMSA-9``."""
    family, _, number = identifier.rpartition("-")
    return family, int(number) if number.isdecimal() else 0
