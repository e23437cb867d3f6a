# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the readiness table, for people and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pytest_seves.text import one_line

State = Literal["ok", "warn", "fail", "unknown"]

_COLOURS: dict[str, str] = {"ok": "32", "warn": "33", "fail": "1;31", "unknown": "36"}
_NOUNS = {"fail": "failed", "unknown": "unknown", "warn": "warning(s)", "ok": "ok"}
_NARROWEST = 50


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    :param value: what the host said, as it said it.
    :param advice: what to do about it; empty where the row is ok.
    """

    id: str
    name: str
    state: State
    value: str
    advice: str = ""


def render(rows: Sequence[Row], width: int = 80, colour: bool = False) -> str:
    """The table as text: state, name and value of each row, and below those that are not ok, what to do.

    Text of the host is shown with its control characters escaped, and never beyond `width` columns.
    """
    names = max((len(one_line(row.name)) for row in rows), default=0)
    lines = [line for row in rows for line in _row(row, min(names, 28), max(width, _NARROWEST), colour)]
    counts = {state: sum(row.state == state for row in rows) for state in _NOUNS}
    told = ", ".join(f"{count} {_NOUNS[state]}" for state, count in counts.items() if count)
    lines += ["", f"{'NOT READY' if counts['fail'] else 'ready'}: {told or 'nothing was looked at'}"]
    return "\n".join(lines) + "\n"


def to_json(rows: Sequence[Row]) -> str:
    """The rows for programs, with whether the host is ready."""
    is_ready = all(row.state != "fail" for row in rows)
    return json.dumps({"ready": is_ready, "rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=True)


def _row(row: Row, names: int, width: int, colour: bool) -> Iterator[str]:
    label = f"{row.state.upper() if row.state == 'fail' else row.state:<8}"
    if colour:
        label = f"\x1b[{_COLOURS[row.state]}m{label}\x1b[0m"
    indent = 8 + names + 2
    name, *more = _wrap(row.name, names)
    value = _wrap(row.value, width - indent)
    yield f"{label}{name:<{names}}  {value[0]}".rstrip()
    for number in range(1, max(len(value), len(more) + 1)):
        left = more[number - 1] if number <= len(more) else ""
        right = value[number] if number < len(value) else ""
        yield f"{'':8}{left:<{names}}  {right}".rstrip()
    if row.state != "ok" and row.advice:
        first, *rest = _wrap(row.advice, width - 11)
        yield f"{'':8}-> {first}"
        yield from (f"{'':11}{line}" for line in rest)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), max(width, 8), break_on_hyphens=False) or [""]
