# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a report: one file, no script, nothing from elsewhere. It depends on report.json alone.

Every text on it is hostile: jinja2 escapes each, and each is first made plain (:mod:`.words`). The page also
tells the browser to run no script and to fetch nothing (Content Security Policy), should both fail.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from .summary import order
from .timeline_svg import strips
from .words import shown

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "templates"
#: What stands in a cell of the matrix.
MARKS = {
    "passed": "•",
    "not applicable": "–",
    "failed": "F",
    "unexpected pass": "X",
    "error": "E",
    "blocked": "B",
    "undecided": "U",
    "known defect": "K",
    "not explained": "S",
    "not run": "N",
}
#: What a page is made by, beside its data.
#: Characters of what stands in a narrow column.
_BRIEF = 24
Json = Mapping[str, Any]


def render(report: Json) -> bytes:
    """report.html, from a report.json that fits its schema."""
    page = environment().get_template("report.html")
    return page.render(
        report=report,
        hosts=[_host(name, report) for name in report["hosts"]],
        launch=report["launch"],
        strips=strips(report["launch"]) if report["launch"] else [],
        marks=MARKS,
        **style("report.css"),
    ).encode("utf-8", "strict")


@cache
def environment() -> jinja2.Environment:
    """Everything that is not markup of ours is escaped, and made plain before."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["brief"] = lambda text: shown(text, _BRIEF)
    made.filters["seconds"] = lambda value: f"{value:.2f}"
    return made


def style(name: str) -> dict[str, Markup]:
    """A style sheet, and the policy that allows it alone."""
    css = "\n" + (TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return {"css": Markup(css), "policy": Markup(policy)}


def _plain(value: object) -> object:
    if isinstance(value, Markup):
        return value
    return shown(value) if isinstance(value, str) else value


def _host(name: str, report: Json) -> dict[str, Any]:
    """What the page says of one host, in the shape in which it says it."""
    host = report["hosts"][name]
    results = [result for result in report["results"] if result["host"] == name]
    shown_levels, said = [], {(None, why) for why in host["against"]}
    for level in host["levels"]:
        against = [(entry["id"], entry["why"]) for entry in level["against"]]
        shown_levels.append({**level, "own": _by_reason(entry for entry in against if entry not in said)})
        said |= set(against)
    return {
        "name": name,
        **host,
        "levels": shown_levels,
        "heads": _heads(host["columns"]),
        "broken": [r for r in results if r["outcome"] in ("error", "blocked")],
        "known": [
            r for r in host["requirements"] if {"known defect", "unexpected pass"} & r["counts"].keys()
        ],
        "tests": _tests(results, report),
    }


def _by_reason(against: Iterable[tuple[str | None, str]]) -> list[tuple[str, list[str]]]:
    """Each reason once, with the requirements that it is said of."""
    found: dict[str, list[str]] = {}
    for identifier, why in against:
        found.setdefault(why, []).extend([identifier] if identifier else [])
    return list(found.items())


def _heads(columns: list[Json]) -> list[tuple[str, int]]:
    """(policy and init path, columns it spans) above the vCPU counts."""

    def title(column: Json) -> str:
        if column["policy"] is None:
            return ""
        path = "" if column["init_path"] == "own" else f", {column['init_path']}"
        return f"{column['policy_name']}{path}"

    return [(text, sum(1 for _ in group)) for text, group in groupby(columns, title)]


def _tests(results: list[Json], report: Json) -> list[dict[str, Any]]:
    """Results by requirement, each with links to its evidence."""
    links = [_link(entry, report["bundle"]["path"]) for entry in report["evidence"]]
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        evidence = [links[number] for number in result["evidence"]]
        name = result["test"].rpartition("::")[2]
        line = {**result, "name": name, "file": result["test"].partition("::")[0], "links": evidence}
        found.setdefault(result["requirement"] or "no requirement", []).append(line)
    return [{"id": name, "results": found[name]} for name in sorted(found, key=order)]


def _link(entry: Json, bundle: str | None) -> dict[str, str | None]:
    parts = entry["path"].split("/")
    file = [*parts, "launch.json"] if entry["kind"] in ("launch", "alone") else parts
    target = (
        None
        if bundle is None
        else "/".join(
            quote(part.encode("utf-8", "surrogatepass")) for part in [".", *bundle.split("/"), *file]
        )
    )
    head, _, rest = parts[-1].removesuffix(".json").partition("-")
    label = head if head.isdecimal() else f"{head}-{rest.partition('-')[0]}"  # gw0-003: of an xdist worker
    if entry["kind"] not in ("launch", "alone"):
        label = f"{entry['kind']} {label}"
    return {"label": label, "href": target, "id": entry["id"][:12]}
