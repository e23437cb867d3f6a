# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness of a host: can it launch SEV-ES guests, and if not, what is there to do? Pure judgement of facts.

A row is "fail" where a launch would fail or the lab file is contradicted, "unknown" where the host did not
tell, and "warn" where a launch works but may surprise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_seves.host import readiness_launch, readiness_platform
from pytest_seves.host.facts import HostFacts
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.readiness_table import Row, State

__all__ = ["Row", "State", "judge", "ready"]


def judge(facts: HostFacts, host: LabHost) -> list[Row]:
    """Every row of the readiness table, in the order in which things are put right."""
    rows = [*readiness_platform.rows(facts, host), *readiness_launch.rows(facts, host)]
    if host.expect.sev_es:
        return rows
    return [*(_not_expected(row) for row in rows), _without_sev_es(rows)]


def ready(rows: Iterable[Row]) -> bool:
    """Whether nothing stands in the way. What the host did not tell is found out by launching."""
    return all(row.state != "fail" for row in rows)


def _not_expected(row: Row) -> Row:
    """On a host that need not offer SEV-ES, its absence is no failure."""
    absent = row.state == "fail" and row.id in readiness_platform.CAPABILITY
    return replace(row, state="warn", advice="as the lab file expects: sev_es = false") if absent else row


def _without_sev_es(rows: Iterable[Row]) -> Row:
    absent = [row.name for row in rows if row.state == "fail" and row.id in readiness_platform.CAPABILITY]
    name = "expected: no SEV-ES"
    if absent:
        return Row("expect-sev-es", name, "ok", f"not offered: {', '.join(absent)}")
    advice = "the lab file says [expect] sev_es = false, but the host offers SEV-ES: correct one of them"
    return Row("expect-sev-es", name, "fail", "offered", advice)
