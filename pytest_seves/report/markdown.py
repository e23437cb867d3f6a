# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts as GitHub Flavored Markdown: ``summary.md``, for a job summary or a comment.

Names of tests and hosts, and messages, come from elsewhere: none of their characters is left to mean
something. Each is written as a numeric character reference, which Markdown never takes for its syntax
(CommonMark 0.31, section 2.5), within a code element, where GitHub makes no links and calls nobody by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .summary import BAD, OUTCOMES, Tally, Verdicts, order

#: Bytes that GitHub takes of one step's summary; of a longer one it shows nothing.
LIMIT = 1 << 20
_TEXT = 500
_CUT = "\n{left} of {all} rows are cut here: a job summary ends at 1 MiB. `verdicts.json` has all of them.\n"
_HEAD = "\n| host | requirement | verdict | tests | failed first |\n|---|---|---|---|---|\n"
_ORDER = (*BAD, "known defect", "passed", "skipped", "not run")


def render(verdicts: Verdicts, notes: Iterable[str] = (), limit: int = LIMIT) -> str:
    """A line for each host and a table of all requirements, the worst first: a cut takes what matters least.

    :param verdicts: tallies by (host, requirement id).
    :param notes: lines for the top, such as what the run was not.
    :param limit: bytes (of ASCII) that the result does not exceed; at least what stands above the table.
    """
    hosts = sorted({host for host, _ in verdicts})
    out = "".join(f"{text(note)}\n\n" for note in notes)
    out += "".join(f"- {text(host)}: {_counted(host, verdicts)}\n" for host in hosts) + _HEAD
    rows = [_row(*key, tally) for key, tally in sorted(verdicts.items(), key=_worst_first)]
    for taken, row in enumerate(rows):
        cut = _CUT.format(left=len(rows) - taken, all=len(rows))
        rest = len(row) + len(cut) if taken + 1 < len(rows) else len(row)
        if len(out) + rest > limit:
            return out + cut
        out += row
    return out


def text(raw: str) -> str:
    """`raw` as code that means nothing, on one line, ASCII only; what is too long ends in an ellipsis.

    A place to break the line after each ``@``, ``:`` and ``.`` also keeps a renderer that looks for
    addresses in the finished text from finding one.
    """
    shown = raw if len(raw) <= _TEXT else raw[: _TEXT - 3] + "..."
    return f"<code>{''.join(map(_character, shown))}</code>" if shown.strip(" ") else ""


def _character(char: str) -> str:
    if char.isascii() and (char.isalnum() or char == " "):
        return char
    if not char.isprintable():
        return "".join(map(_character, char.encode("unicode_escape").decode()))
    return f"&#{ord(char)};" + ("<wbr>" if char in "@:." else "")


def _worst_first(item: tuple[tuple[str, str], Tally]) -> tuple[int, tuple[str, int], str]:
    (host, identifier), tally = item
    return _ORDER.index(tally.verdict), order(identifier), host


def _counted(host: str, verdicts: Verdicts) -> str:
    decided = Counter(tally.verdict for (at, _), tally in verdicts.items() if at == host)
    return ", ".join(f"{decided[name]} {name}" for name in _ORDER if decided[name])


def _row(host: str, identifier: str, tally: Tally) -> str:
    counts = ", ".join(f"{tally.counts[name]} {name}" for name in OUTCOMES if tally.counts[name])
    verdict = f"**{tally.verdict}**" if tally.verdict in BAD else tally.verdict
    first = "<br>".join(filter(None, map(text, (*(tally.first or ()), tally.evidence))))
    return f"| {text(host)} | {text(identifier)} | {verdict} | {counts} | {first} |\n"
