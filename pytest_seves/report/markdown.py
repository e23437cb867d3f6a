# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts as GitHub Flavored Markdown: ``summary.md``, for a job summary or a comment.

Names of tests and hosts, and messages, come from elsewhere: none of their characters is left to mean
something. Each is written as a numeric character reference, which Markdown never takes for its syntax
(CommonMark 0.31, section 2.5), within a code element, where GitHub makes no links and calls nobody by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .catalogue import Requirement
from .summary import BAD, OUTCOMES, Tally, Verdicts, order

#: Bytes that GitHub takes of one step's summary; of a longer one it shows nothing.
LIMIT = 1 << 20
_TEXT = 500
_CUT = "\n{left} of {all} rows are cut here: a job summary ends at 1 MiB. `verdicts.json` has all of them.\n"
_ORDER = (*BAD, "known defect", "unexpected pass", "passed", "skipped", "not run")
_Items = list[tuple[tuple[str, str], Tally]]


@dataclass(frozen=True)
class _Part:
    """A table with what stands around it."""

    before: str
    rows: list[str]
    after: str = ""


def render(
    verdicts: Verdicts,
    notes: Iterable[str] = (),
    limit: int = LIMIT,
    requirements: Iterable[Requirement] = (),
) -> str:
    """What a person wants to know, in this order: a cut takes what matters least.

    What the run was not; a line for each host; what went wrong on each; known defects; all the rest, folded.

    :param verdicts: tallies by (host, requirement id).
    :param notes: lines for the top, such as what the run was not.
    :param limit: bytes (of ASCII) that the result does not exceed; at least what stands above the tables.
    :param requirements: the catalogue, for the sentences.
    """
    known = {requirement.id: requirement for requirement in requirements}
    hosts = sorted({host for host, _ in verdicts})
    out = "".join(f"> {text(note)}\n\n" for note in notes)
    out += "".join(f"- {text(host)}: {_counted(host, verdicts)}\n" for host in hosts)
    parts = list(_parts(sorted(verdicts.items(), key=_worst_first), hosts, known))
    total = left = sum(len(part.rows) for part in parts)
    for part in parts:
        out += part.before
        for row in part.rows:
            rest = sum(map(_around, parts)) + len(_CUT.format(left=total, all=total))
            if len(out) + len(row) + rest > limit:
                return out + part.after + _CUT.format(left=left, all=total)
            out, left = out + row, left - 1
        out += part.after
    return out


def _around(part: _Part) -> int:
    return len(part.before) + len(part.after)


def _parts(items: _Items, hosts: list[str], known: dict[str, Requirement]) -> Iterator[_Part]:
    for host in hosts:
        bad = [(key, tally) for key, tally in items if key[0] == host and tally.verdict in BAD]
        if bad:
            head = "| requirement | verdict | tests | first of them, and why |\n|---|---|---|---|\n"
            rows = [_bad(identifier, tally, known.get(identifier)) for (_, identifier), tally in bad]
            yield _Part(f"\n### Not passed on {text(host)}\n\n{head}", rows)
    defects = [(key, tally) for key, tally in items if tally.known]
    if defects:
        head = "| host | requirement | known defect |\n|---|---|---|\n"
        yield _Part(f"\n### Known defects of the product\n\n{head}", [_defect(*item) for item in defects])
    rest = [(key, tally) for key, tally in items if tally.verdict not in BAD]
    if rest:
        words = Counter(tally.verdict for _, tally in rest)
        told = ", ".join(f"{words[name]} {name}" for name in _ORDER if words[name])
        head = "| host | requirement | verdict | tests |\n|---|---|---|---|\n"
        before = f"\n<details><summary>All others: {told}</summary>\n\n{head}"
        yield _Part(before, [_row(*item) for item in rest], "\n</details>\n")


def text(raw: str) -> str:
    """`raw` as code that means nothing, on one line, ASCII only; what is too long ends in an ellipsis.

    A place to break the line after each ``@``, ``:`` and ``.`` also keeps a renderer that looks for
    addresses in the finished text from finding one.
    """
    shown = prose(raw)
    return f"<code>{shown}</code>" if shown.strip(" ") else ""


def prose(raw: str) -> str:
    """The same in the font of the text around it."""
    shown = raw if len(raw) <= _TEXT else raw[: _TEXT - 3] + "..."
    return "".join(map(_character, shown))


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


def _counts(tally: Tally) -> str:
    return ", ".join(f"{tally.counts[name]} {name}" for name in OUTCOMES if tally.counts[name])


def _bad(identifier: str, tally: Tally, requirement: Requirement | None) -> str:
    what = f"<br>{requirement.level}: {prose(requirement.sentence)}" if requirement else ""
    first = "<br>".join(filter(None, map(text, (*(tally.first or ()), tally.evidence))))
    return f"| {text(identifier)}{what} | **{tally.verdict}** | {_counts(tally)} | {first} |\n"


def _defect(key: tuple[str, str], tally: Tally) -> str:
    why = "<br>".join(prose(known.removeprefix("known defect: ")) for known in sorted(tally.known))
    return f"| {text(key[0])} | {text(key[1])} | {why} |\n"


def _row(key: tuple[str, str], tally: Tally) -> str:
    return f"| {text(key[0])} | {text(key[1])} | {tally.verdict} | {_counts(tally)} |\n"
