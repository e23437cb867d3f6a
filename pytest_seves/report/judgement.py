# SPDX-License-Identifier: GPL-2.0-or-later
"""From results to verdicts and levels: strict, since whoever reads the report was not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_seves.evidence.bundle import Result

from .catalogue import Requirement
from .levels import Level

#: From worst to best: the verdict on a requirement is the worst that its cases came to.
WORST_FIRST = (
    "failed",
    "error",
    "blocked",
    "undecided",
    "known defect",
    "not explained",
    "not run",
    "unexpected pass",
    "passed",
    "not applicable",
)
#: Verdicts that are no objection.
GOOD = ("passed", "unexpected pass", "not applicable")


@dataclass(frozen=True)
class Case:
    """One test of a requirement on one host.

    :param outcome: one of :data:`WORST_FIRST`.
    :param result: None for a test that a whole run has and this one has not.
    :param note: what confirms a reason for which it does not apply.
    """

    test: str
    outcome: str
    result: Result | None
    note: str = ""

    @property
    def why(self) -> str:
        """Why it did not pass."""
        return self.result.why if self.result else "part of the suites, and not run"


@dataclass(frozen=True)
class Judged:
    """A requirement on one host.

    :param requirement: None where the catalogue of the run does not have it.
    """

    id: str
    requirement: Requirement | None
    cases: tuple[Case, ...]

    @property
    def counts(self) -> Counter[str]:
        """Cases by outcome."""
        return Counter(case.outcome for case in self.cases)

    @property
    def verdict(self) -> str:
        """The worst outcome; passed where some cases passed and the others do not apply."""
        return next((outcome for outcome in WORST_FIRST if self.counts[outcome]), "not run")

    @property
    def objections(self) -> list[str]:
        """Why it cannot count as met."""
        if not self.cases:
            return ["not run: no test of it was"]
        found = [
            f"{n} {outcome}" for outcome in WORST_FIRST if outcome not in GOOD and (n := self.counts[outcome])
        ]
        bare = sum(
            case.outcome in ("passed", "unexpected pass") and not (case.result and case.result.evidence)
            for case in self.cases
        )
        return found + ([f"{bare} passed without evidence"] if bare else [])

    @property
    def reasons(self) -> list[str]:
        """Why all of it does not apply, each reason once."""
        return list(dict.fromkeys(case.why for case in self.cases if case.outcome == "not applicable"))


@dataclass(frozen=True)
class Conclusion:
    """Whether a level was reached on one host.

    :param against: what stands against it: the requirement's id, or None for the whole run, and why.
    """

    level: Level
    against: tuple[tuple[str | None, str], ...]
    not_applicable: tuple[Judged, ...] = ()
    should: tuple[Judged, ...] = field(default=())

    @property
    def reached(self) -> bool:
        """Nothing stands against it."""
        return not self.against


def conclude(
    level: Level,
    judged: Mapping[str, Judged],
    catalogue: Mapping[str, Requirement],
    general: Iterable[str],
    vcpus: Sequence[int],
    policies: Sequence[int],
) -> Conclusion:
    """One level on one host.

    :param general: objections to the whole run, whatever the tests said.
    :param vcpus: counts that the run was asked for.
    """
    against: list[tuple[str | None, str]] = [(None, why) for why in general]
    if missing := [str(count) for count in level.vcpus if count not in vcpus]:
        against.append((None, f"the run left out the vCPU counts {', '.join(missing)}"))
    if missing := [f"{policy:#x}" for policy in level.policies if policy not in policies]:
        against.append((None, f"the run left out the policies {', '.join(missing)}"))
    applies_not, should = [], []
    for identifier in level.requirements:
        requirement = catalogue.get(identifier)
        met = judged.get(identifier, Judged(identifier, requirement, ()))
        if requirement is None:
            against.append((identifier, "not in the catalogue of the run"))
        elif requirement.level != "must":
            should += [met] if met.objections else []
        elif met.objections:
            against.append((identifier, ", ".join(met.objections)))
        elif met.verdict == "not applicable":
            applies_not.append(met)
    if len(applies_not) == sum(
        1 for i in level.requirements if i in catalogue and catalogue[i].level == "must"
    ):
        against.append((None, "no requirement of it applies"))
    return Conclusion(level, tuple(against), tuple(applies_not), tuple(should))
