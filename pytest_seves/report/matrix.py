# SPDX-License-Identifier: GPL-2.0-or-later
"""Requirement x vCPU count x policy x init path: the worst outcome in each cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_seves.spec.sev import Policy

from .judgement import WORST_FIRST, Case, Judged

#: An init path that a test did not choose is the VMM's own.
OWN = "own"


@dataclass(frozen=True)
class Column:
    """Cases with the same guest; all None for those that name no guest of the matrix."""

    policy: int | None
    init_path: str | None
    vcpus: int | None

    def to_json(self) -> dict[str, Any]:
        """For the document."""
        name = None if self.policy is None else policy_name(self.policy)
        return {"policy": self.policy, "policy_name": name, "init_path": self.init_path, "vcpus": self.vcpus}


OTHER = Column(None, None, None)


def policy_name(policy: int) -> str:
    """A policy's bits by name: ``ES+NODBG``."""
    names = ("ES", "NODBG", "NOKS", "NOSEND", "DOMAIN", "SEV")
    return "+".join(name for name in names if policy & Policy[name]) or f"{policy:#x}"


def columns(judged: Iterable[Judged], vcpus: Sequence[int], policies: Sequence[int]) -> list[Column]:
    """Guests that the run was asked for and tests were run with, and one for all other cases."""
    met = {_column(case) for entry in judged for case in entry.cases}
    wanted = [
        Column(policy, path, count)
        for path in (OWN, "ES_INIT", "INIT2")
        for policy in policies
        for count in vcpus
    ]
    return [*(column for column in wanted if column in met), OTHER]


def row(cases: Iterable[Case], shape: Sequence[Column]) -> list[str | None]:
    """The worst outcome for each column, None where there was no case."""
    found: dict[Column, str] = {}
    known = set(shape)
    for case in cases:
        column = _column(case)
        column = column if column in known else OTHER
        worst = found.get(column, case.outcome)
        found[column] = min(worst, case.outcome, key=WORST_FIRST.index)
    return [found.get(column) for column in shape]


def _column(case: Case) -> Column:
    """The guest of its parameters, or else the one that all its launches had."""
    if case.result is None:
        return OTHER
    own = _guest(case.result.parameters)
    asked = {_guest(entry.request) for entry in case.result.evidence if entry.request is not None}
    return own if own is not OTHER or len(asked) != 1 else asked.pop()


def _guest(told: Mapping[str, Any]) -> Column:
    policy, vcpus, path = (told.get(name) for name in ("policy", "vcpus", "init_path"))
    if type(policy) is not int or type(vcpus) is not int:
        return OTHER
    return Column(policy, str(path)[:20] if path else OWN, vcpus)
