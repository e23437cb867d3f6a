# SPDX-License-Identifier: GPL-2.0-or-later
"""The job summary, rendered as GitHub renders it: by its own library, cmark-gfm."""

from __future__ import annotations

from html.parser import HTMLParser

import cmarkgfm
import pytest
from cmarkgfm.cmark import Options
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.report import markdown
from pytest_seves.report.catalogue import Requirement
from pytest_seves.report.summary import Tally

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "a \\| b \\",
    "one\n\n# two\n| three |\r\n- four",
    "`code` ``more`` ~~~",
    "**bold** _it_ ~~gone~~ [a](http://evil.example) ![b](c)",
    "http://evil.example/?a=b&c www.evil.example mail@evil.example",
    "@everyone closes #1, org/repo@0123456789abcdef",
    "</code></td></table><h1>",
    "&lt;b&gt; &#60;b&#62; &amp;",
    "$(rm -rf ~) ${{ secrets.X }} ::error::x",
    "\u202egnp.exe\u2066 \x1b[31mred\x00\x07",
    "test_\N{SNOWMAN}[\U0001f600-\xe9]",
]


class Page(HTMLParser):
    """What is in a rendered page.

    :ivar tags: of all elements, without the attributes of ours.
    :ivar rows: the text of each cell, by row.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self._open = False
        options = Options.CMARK_OPT_UNSAFE  # as on GitHub, where a sanitizer comes after it
        self.feed(cmarkgfm.github_flavored_markdown_to_html(source, options))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count it."""
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        """Text between tables is in no cell."""
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        """Text of the cell that is open."""
        if self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


OURS = {"ul", "li", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "wbr", "br", "strong"}
OURS |= {"h3", "details", "summary", "blockquote"}


def tally(*outcomes: str, test: str = "test_it", why: str = "because", evidence: str = "") -> Tally:
    """A tally of these outcomes."""
    made = Tally()
    for outcome in outcomes:
        made.add(outcome, test, why, evidence)
    return made


HEADS = {"requirement", "host"}


def cells(page: Page) -> list[list[str]]:
    """Rows of all tables, without their heads."""
    rows = [[cell.strip() for cell in row] for row in page.rows]
    return [row for row in rows if row[0] not in HEADS]


def test_what_went_wrong_comes_first() -> None:
    """By host, with the first test, its reason and evidence; then known defects, then the rest."""
    told = markdown.render(
        {
            ("lab1", "A-1"): tally("passed", "passed"),
            ("lab2", "A-10"): tally("failed", "passed", evidence="out/lab2"),
            ("lab1", "A-2"): tally("error"),
            ("lab2", "A-9"): tally("known defect", "skipped", why="known defect: it crashes (commit 1)"),
            ("lab1", "A-9"): tally("failed"),
        },
        requirements=[Requirement("A-9", "It <b>works</b>.", "must", "a document")],
    )
    assert cells(Page(told)) == [
        ["A-9must: It <b>works</b>.", "failed", "1 failed", "test_itbecause"],
        ["A-2", "error", "1 error", "test_itbecause"],
        ["A-10", "failed", "1 failed, 1 passed", "test_itbecauseout/lab2"],
        ["lab2", "A-9", "it crashes (commit 1)"],
        ["lab2", "A-9", "known defect", "1 known defect, 1 skipped"],
        ["lab1", "A-1", "passed", "2 passed"],
    ]
    assert told.index("Not passed on") < told.index("Known defects") < told.index("<details>")
    assert told.count("<details>") == told.count("</details>") == 1


def test_each_host_has_a_line_and_notes_stand_above() -> None:
    """Who reads one line per host has read what matters."""
    lab1 = {("lab1", "A-1"): tally("failed"), ("lab1", "A-2"): tally("passed")}
    told = markdown.render({**lab1, ("b", "A-1"): tally("skipped")}, ["No qualification"])
    assert told.splitlines()[:4] == [
        "> <code>No qualification</code>",
        "",
        "- <code>b</code>: 1 skipped",
        "- <code>lab1</code>: 1 failed, 1 passed",
    ]


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_text_stays_text(raw: str) -> None:
    """No name or message makes an element, a link or a cell of its own, wherever it stands."""
    bad = tally("failed", "known defect", test=raw, why=raw, evidence=raw)
    sentences = [Requirement(raw, raw, "must", raw)]
    told = markdown.render({(raw, raw): bad, ("b", raw): tally("passed")}, [raw], requirements=sentences)
    page = Page(told)
    assert page.tags <= OURS
    assert [len(row) for row in page.rows] == [4, 4, 3, 3, 4, 4]
    assert told.isascii()


@given(st.text(max_size=200))
def test_any_text_is_shown_as_it_is(raw: str) -> None:
    """What can be printed reads as it was; the rest shows as its escape sequence."""
    page = Page(markdown.render({("lab1", "A-1"): tally("failed", test=raw, why="")}))
    assert page.tags <= OURS
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw)
    (cell,) = (row[3] for row in page.rows[1:])
    assert cell.strip() == shown.strip()


@pytest.mark.parametrize("rows", [1, 10, 3000])
def test_the_limit_is_kept(rows: int) -> None:
    """What does not fit is cut at a row's end, with a line that says how much; green rows go first."""
    long = "|" * 1000
    verdicts = {("lab1", f"A-{n}"): tally("passed") for n in range(rows)}
    verdicts["lab1", "A-9999"] = tally("failed", test=long, why=long, evidence=long)
    told = markdown.render(verdicts, limit=20_000)
    assert len(told.encode()) <= 20_000
    assert "&#45;9999" in told
    missing = rows + 1 - len(cells(Page(told)))
    assert (f"{missing} of {rows + 1} rows are cut here" in told) == (missing > 0) == (rows == 3000)
    assert told.count("<details>") == told.count("</details>")


def test_a_run_of_any_size_fits_github() -> None:
    """The default limit is GitHub's."""
    verdicts = {("lab1", f"A-{n}"): tally("failed", test="<" * 900, why=">" * 900) for n in range(400)}
    assert len(markdown.render(verdicts).encode()) <= 1024 * 1024


def test_a_run_without_verdicts_is_no_error() -> None:
    """Nothing to tell."""
    assert markdown.render({}) == ""
