# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages made of what strangers said: nothing of it runs, nothing is fetched, nothing hides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import Bundle
from pytest_seves.report import qualify, trend
from pytest_seves.report.verify import verify
from tests.evidence import recording
from tests.report import browser, bundles

Json = dict[str, Any]

NASTY = (
    "<script>document.title='run'</script>",
    "</style></svg></table></script><script>document.title='run'</script>",
    "<img src=http://127.0.0.1:9/x onerror=document.title='run'>",
    "\"' onmouseover=document.title='run' style='position:fixed' x=\"",
    "javascript:document.title='run'",
    "{{ 7*7 }}{% for x in y %}",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \x9b2J \r\n over",
    "\u202egnp.exe \u2066 \u200b \ufeff \u2028",
    "lone \ud800 \udfff half",
    "&lt;b&gt; &amp; &#60;",
    "<!-- --> <![CDATA[ ]]> <base href=//127.0.0.1:9/> <meta http-equiv=refresh content=0>",
    "A" * 1_000_000,
)
ALL = " ".join(NASTY[:-1])
#: What our own pages are made of.
_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "h1",
        "h2",
        "h3",
    ),
    *(
        "p",
        "ul",
        "li",
        "a",
        "b",
        "i",
        "br",
        "code",
        "span",
        "strong",
        "div",
        "svg",
        "text",
        "line",
        "rect",
        "circle",
    ),
    *("path", "g"),
}


#: By how much a page is wider than its window.
_WIDER = "Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)"


class Tags(HTMLParser):
    """Tags and attributes of a page, as a parser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.add(tag)
        self.attributes += attrs


def hostile(root: Path) -> Path:
    """A bundle in which every text that is not ours is hostile."""
    facts = bundles.facts(
        microcode=ALL,
        dmi={"bios_vendor": ALL, "product_name": ALL},
        kernel_build_id=ALL,
        uname={"release": ALL, "version": ALL},
        user=ALL,
        vmm={"path": ALL, "resolved": ALL, "sha256": ALL, "version_line": ALL},
        firmware={"path": ALL, "sha256": ALL, "error": ALL},
    )
    lines = [
        bundles.result(f"suites/x/test_x.py::test_one[{text}]", f"X-{text}"[:1200], outcome, text, launch=0)
        for text in NASTY
        for outcome in ("failed", "error", "known defect", "undecided", "skipped")
    ]
    for number, line in enumerate(lines):
        line["test"] += str(number)
    requirement = (
        f"[[requirement]]\nid = 'X-1'\nlevel = 'must'\nsentence = {json.dumps(ALL[:400])}\nsource = 's'\n"
    )
    requirement = re.sub(r"\\u(d[89a-f]..)", "", requirement)
    level = '[[level]]\nname = "<b>L</b>"\nsentence = "</td><script>1</script>"\nrequirements = ["X-1"]\n'
    return bundles.write(
        root,
        run=bundles.about(
            run=ALL,
            started=ALL,
            arguments=list(NASTY),
            python=ALL,
            plugins={text[:2000]: text for text in NASTY},
            defects=list(NASTY),
            suite={"name": ALL, "version": ALL},
            hosts={"lab1": {"model": ALL, "description": ALL, "facts": "lab1/facts.json"}},
            blocked={"lab1": {"why": ALL}},
        ),
        lines=lines,
        files={
            "lab1/facts.json": json.dumps(facts),
            "requirements.toml": requirement,
            "levels.toml": level + "vcpus = [1]\npolicies = [5]\n",
            "suite.json": bundles.plan({f"x::{text}": "X-1" for text in NASTY}),
        },
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that bundle."""
    folder = tmp_path_factory.mktemp("hostile")
    qualify.write(Bundle.open(hostile(folder / "evidence")), folder, None)
    return folder / "report.html"


@pytest.fixture(scope="module")
def trend_page(page: Path) -> Path:
    """The trend of that bundle and a usual one."""
    usual = bundles.write(page.parent.parent / f"{page.parent.name}-usual")
    file = page.parent.parent / f"{page.parent.name}-trend.html"
    file.write_bytes(trend.page([trend.read(page.parent), trend.read(usual)]))
    return file


@pytest.mark.parametrize("which", ["page", "trend_page"])
def test_only_our_own_markup_is_on_a_page(which: str, request: pytest.FixtureRequest) -> None:
    """As a parser reads it: no script, no handler, no style of an element, no address but of evidence."""
    file: Path = request.getfixturevalue(which)
    found = Tags()
    found.feed(file.read_text(encoding="utf-8"))
    assert found.tags <= _TAGS
    names = {name for name, _ in found.attributes}
    assert not {name for name in names if name.startswith("on")} | (
        names & {"style", "src", "srcset", "action"}
    )
    links = [value or "" for name, value in found.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("./evidence/") for link in links)


@pytest.mark.parametrize("which", ["page", "trend_page"])
def test_nothing_on_a_page_hides_or_turns_text(which: str, request: pytest.FixtureRequest) -> None:
    """No control, format or unassigned character is in the file; each is shown as its escape."""
    text = request.getfixturevalue(which).read_bytes().decode("utf-8")
    assert {char for char in text if not char.isprintable()} == {"\n"}
    assert r"\x1b[31mred" in text
    assert r"\u202egnp.exe" in text


def test_what_is_cut_says_so(page: Path) -> None:
    """A text of a megabyte is cut, and how much of it is told; the page stays small."""
    text = page.read_text(encoding="utf-8")
    assert re.search(r"A \[\.\.\. \d+ more characters\]", text)
    assert len(text) < 2_000_000
    assert (page.parent / "report.json").stat().st_size < 2_000_000


def test_a_hostile_report_is_verified_like_any_other(page: Path) -> None:
    """It is whole, and says what it is."""
    assert verify(page.parent, None).wrong == []


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without it"])
@pytest.mark.parametrize("which", ["page", "trend_page"])
def test_a_browser_runs_and_fetches_nothing(
    which: str, policy: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Chromium compiles no script and asks for nothing, with the page's policy and without it."""
    text = request.getfixturevalue(which).read_text(encoding="utf-8")
    file = tmp_path / "page.html"
    file.write_text(
        text if policy else re.sub(r"<meta http-equiv=[^>]*>", "", text, count=1), encoding="utf-8"
    )
    with browser.tab(tmp_path) as tab:
        tab.open(file)
        title = tab.call("Runtime.evaluate", expression="document.title")["result"]["value"]
        scripts = [address for address in tab.scripts() if address]
        requested = tab.requested()
        errors = [entry["entry"]["text"] for entry in tab.told("Log.entryAdded")]
        width = tab.call("Runtime.evaluate", expression=_WIDER)["result"]["value"]
    assert (scripts, requested, errors) == ([], [file.as_uri()], [])
    assert title != "run"
    assert width == 0


def test_the_browser_would_tell(tmp_path: Path) -> None:
    """A page with a script and a picture of elsewhere shows that the test above can fail."""
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><script>document.title='run'</script><img src='http://127.0.0.1:9/x'>")
    with browser.tab(tmp_path) as tab:
        tab.open(file)
        title = tab.call("Runtime.evaluate", expression="document.title")["result"]["value"]
        scripts, requested = tab.scripts(), tab.requested()
    assert title == "run"
    assert file.as_uri() in scripts
    assert "http://127.0.0.1:9/x" in requested


def test_the_model_s_stamp_is_on_every_sheet(tmp_path: Path) -> None:
    """On paper too: each page of the PDF has it."""
    host = {"model": "linux-6.1", "description": "model", "facts": "lab1/facts.json"}
    lines = [bundles.result(f"suites/x/test_x.py::test_one[{n}]", "X-1", launch=0) for n in range(300)]
    root = bundles.write(tmp_path / "r" / "evidence", run=bundles.about(hosts={"lab1": host}), lines=lines)
    qualify.write(Bundle.open(root), tmp_path / "r", None)
    with browser.tab(tmp_path) as tab:
        tab.open(tmp_path / "r" / "report.html")
        tab.pdf(tmp_path / "report.pdf")
    sheets = browser.sheets(tmp_path / "report.pdf")
    assert len(sheets) > 4
    assert ["MODEL: NOT A QUALIFICATION" in sheet for sheet in sheets] == [True] * len(sheets)


def test_no_text_pushes_the_stamp_off_the_paper(page: Path, tmp_path: Path) -> None:
    """Whatever a stranger's names are like, each sheet says that it is no qualification."""
    with browser.tab(tmp_path) as tab:
        tab.open(page)
        tab.pdf(tmp_path / "report.pdf")
    sheets = browser.sheets(tmp_path / "report.pdf")
    assert ["MODEL: NOT A QUALIFICATION" in sheet for sheet in sheets] == [True] * len(sheets)


Change = Callable[[Json], None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host": "nobody", "evidence": []}, "'nobody' is not among"),
        ({"duration_s": float("nan")}, "duration_s: wanted seconds"),
        ({"requirement": "X-²"}, ""),
        ({"parameters": {"vcpus": [1], "policy": {"a": 1}, "init_path": 5}}, ""),
        ({"parameters": {"vcpus": True, "policy": -1}}, ""),
    ],
)
def test_results_of_the_wrong_kind(tmp_path: Path, change: Json, said: str) -> None:
    """Each is named in the error, or shown for what it is; none is a traceback."""
    lines = bundles.results()
    lines[0] |= change
    root = bundles.write(tmp_path / "evidence", lines=lines)
    if not said:
        qualify.write(Bundle.open(root), tmp_path, None)
        assert verify(tmp_path, None).wrong == []
        return
    with pytest.raises(EvidenceError, match=re.escape(said)):
        qualify.write(Bundle.open(root), tmp_path, None)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vcpus": ["1"]}, "vcpus"),
        ({"policies": [1 << 40]}, "policies"),
        ({"blocked": {"lab1": 1}}, "blocked"),
    ],
)
def test_a_run_of_the_wrong_kind(tmp_path: Path, changes: Json, said: str) -> None:
    """Named in the error."""
    root = bundles.write(tmp_path / "evidence", run=bundles.about(**changes))
    with pytest.raises(EvidenceError, match=said):
        qualify.write(Bundle.open(root), tmp_path, None)


def test_evidence_does_not_lead_elsewhere(tmp_path: Path) -> None:
    """A link on a page goes below the bundle, or there is no page."""
    root = bundles.write(tmp_path / "evidence")
    text = (root / "results.jsonl").read_text().splitlines()
    line = json.loads(text[0])
    line["evidence"] = [{"kind": "odd", "path": "a/../../../etc/passwd", "id": "0" * 64}]
    (root / "results.jsonl").write_text(json.dumps(line) + "\n")
    about = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps({**about, "sealed": None}))
    with pytest.raises(EvidenceError, match="wanted a name below the bundle"):
        qualify.write(Bundle.open(root), tmp_path, None)


def test_a_name_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    """Half a character, as JSON can write it."""
    root = bundles.write(tmp_path / "evidence")
    text = (root / "results.jsonl").read_text().replace("lab1/launches/001", "lab1/\\ud800/001")
    (root / "results.jsonl").write_text(text)
    about = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps({**about, "sealed": None}))
    with pytest.raises(EvidenceError, match="wanted a name of a file below"):
        Bundle.open(root)


@pytest.mark.parametrize(
    "odd", [{"t": 10**400}, {"dt": "soon"}, {"ret": "0"}, {"ret": 10**400}, {"dt": 1e999}], ids=str
)
def test_a_recording_with_odd_numbers_is_not_drawn(tmp_path: Path, odd: Json) -> None:
    """The report is made without it."""
    content = recording.jsonl([*recording.launch(2), {**recording.run(1), **odd}])
    root = bundles.write(tmp_path / "evidence", timeline=content)
    assert qualify.write(Bundle.open(root), tmp_path, None)["launch"] is None


def test_a_recording_with_hostile_names_is_drawn(tmp_path: Path) -> None:
    """An ioctl of an unknown kind of descriptor has a lane, by the name that was recorded, made plain."""
    odd = recording.ioctl(0x1234, kind="<script>\x1b[31m", vm=None)
    content = recording.jsonl([*recording.launch(2), odd])
    root = bundles.write(tmp_path / "evidence", timeline=content)
    report = qualify.write(Bundle.open(root), tmp_path, None)
    assert "<script>\x1b[31m" in report["launch"]["lanes"]
    assert r"&lt;script&gt;\x1b[31m" in (tmp_path / "report.html").read_text()
