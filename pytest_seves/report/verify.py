# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a report that somebody handed over, offline, and says what it vouches for and what it does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import ABOUT, Bundle
from pytest_seves.evidence.folder import Folder

from . import html, qualify
from .plan import package_sha256
from .qualification import FORMAT, VERSION, document
from .words import bounded

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

_LONGEST = 256 << 20
_FILES = {qualify.REPORT, qualify.PAGE, qualify.ENVELOPE}
Json = dict[str, Any]


@dataclass
class Findings:
    """What was found, in words: `holds`, `wrong`, and `open` for what cannot be checked here."""

    holds: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    #: What no check of files can tell.
    trust: list[str] = field(default_factory=list)
    #: What is stamped on the report: it is no qualification, however well it is signed.
    stamps: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0: everything holds; 1: something is wrong; 2: nothing is, and not everything could be checked."""
        return 1 if self.wrong else 2 if self.open else 0


def verify(root: Path, key: SSlibKey | None, bundle_at: Path | None = None) -> Findings:
    """Check a report's directory.

    :param bundle_at: where the bundle is, if it does not lie with the report.
    """
    found = Findings()
    folder = Folder(root)
    try:
        content, page = folder.read(qualify.REPORT, limit=_LONGEST), folder.read(qualify.PAGE, limit=_LONGEST)
        report = _checked(folder.object(qualify.REPORT, content))
    except EvidenceError as error:
        found.wrong.append(str(error))
        return found
    found.holds.append(
        f"{qualify.REPORT} is a report of run {report['bundle']['run']}, made {report['made']}"
    )
    same = report["generator"]["package"] == package_sha256()
    _strangers(found, root, report)
    signed = _signature(found, folder, report, key, qualify.subjects(report, content, page))
    _page(found, report, page, same, signed)
    path = report["bundle"]["path"]
    if bundle_at is not None:
        _bundle(found, bundle_at, report, same)
    elif path is not None:
        _bundle(found, root / path, report, same, levels=len(path.split("/")))
    else:
        found.open.append("the bundle does not lie with the report: give --bundle to check the evidence")
    _trust(found, report)
    return found


def _checked(report: Json) -> Json:
    fits, misfit = _schema()
    if report.get("format") != FORMAT or report.get("version") != VERSION:
        got = f"{report.get('format')!r} version {report.get('version')!r}"
        raise EvidenceError(f"{qualify.REPORT}: wanted {FORMAT!r} version {VERSION}, got {got[:200]}")
    try:
        fits(report)
    except misfit as error:
        raise EvidenceError(f"{qualify.REPORT}: {bounded(error, 300)}") from None
    path = report["bundle"]["path"]
    if path is not None and any(part in ("", ".", "..") for part in path.split("/")):
        raise EvidenceError(
            f"{qualify.REPORT}: bundle.path: wanted a name below this directory, got {path[:200]!r}"
        )
    for result in report["results"]:
        if result["host"] not in report["hosts"] or any(
            n >= len(report["evidence"]) for n in result["evidence"]
        ):
            raise EvidenceError(
                f"{qualify.REPORT}: {result['test'][:200]!r}: names a host or evidence it has not"
            )
    for host in report["hosts"].values():
        if any(len(row["cells"]) != len(host["columns"]) for row in host["requirements"]):
            raise EvidenceError(f"{qualify.REPORT}: a row of the matrix has another width than its head")
    return report


@cache
def _schema() -> tuple[Callable[[Json], object], type[Exception]]:
    """What checks a report, and what it raises."""
    import fastjsonschema

    text = files("pytest_seves.report").joinpath("schemas/report.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(text)), fastjsonschema.JsonSchemaValueException


def _page(found: Findings, report: Json, page: bytes, same: bool, signed: bool) -> None:
    if not same:
        by = report["generator"]["version"]
        (found.trust if signed else found.open).append(
            f"made by another pytest-seves ({by}): only that one can tell whether {qualify.PAGE} shows what "
            f"{qualify.REPORT} says, and whether its verdicts follow from the results"
        )
    elif html.render(report) == page:
        found.holds.append(f"{qualify.PAGE} shows what {qualify.REPORT} says, byte for byte")
    else:
        found.wrong.append(f"{qualify.PAGE} was changed: it is not what {qualify.REPORT} makes")


def _strangers(found: Findings, root: Path, report: Json) -> None:
    """Nothing lies there that is none of the report: it would look as if it was vouched for."""
    way = (report["bundle"]["path"] or "").split("/")  # each of these leads to the next, and to nothing else
    for depth, part in enumerate(way):
        folder = root.joinpath(*way[:depth])
        known = {part} | (_FILES if depth == 0 else set())
        for entry in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            name = entry.relative_to(root).as_posix()
            if entry.is_symlink():
                found.wrong.append(f"{name} is a link: nothing here may lead elsewhere")
            elif entry.name not in known:
                found.wrong.append(
                    f"{name} is none of the report's files, and nothing vouches for it: remove it"
                )


def _signature(
    found: Findings, folder: Folder, report: Json, key: SSlibKey | None, subjects: dict[str, str]
) -> bool:
    """Whether it holds, for the key that was given."""
    from . import signature

    there = os.path.lexists(folder.root / qualify.ENVELOPE)
    told = report["signing"]
    if not there and (told or key):
        said = (
            f"{qualify.REPORT} says it was signed by key {told['keyid'][:16]}" if told else "a key was given"
        )
        found.wrong.append(
            f"there is no {qualify.ENVELOPE}, and {said}: the signature was removed, or never made"
        )
        return False
    if not there:
        found.open.append("unsigned: nobody vouches for it, and anybody could have made all of it")
        return False
    try:
        content = folder.read(qualify.ENVELOPE, limit=_LONGEST)
        by = signature.keyids(content)
        if told is None or by != [told["keyid"]]:
            found.wrong.append(f"{qualify.ENVELOPE} is signed by a key that {qualify.REPORT} does not name")
            return False
        if key is None:
            found.open.append(f"signed by key {by[0]}, unchecked: give the public key with --key")
            return False
        statement = signature.opened(content, key)
    except EvidenceError as error:
        found.wrong.append(f"{qualify.ENVELOPE}: {error}")
        return False
    if statement != signature.statement(subjects, qualify.predicate(report)):
        wrong = [s["name"] for s in _subjects(statement) if subjects.get(s["name"]) != s["digest"]["sha256"]]
        found.wrong.append(
            f"{qualify.ENVELOPE} is signed, and speaks of another report"
            + (f": {', '.join(wrong)} is not what was signed" if wrong else "")
        )
        return False
    found.holds.append(f"signed by key {key.keyid}, over {', '.join(subjects)}")
    return True


def _subjects(statement: Json) -> list[Json]:
    told = statement.get("subject")
    fits = isinstance(told, list) and all(
        isinstance(s, dict) and isinstance(s.get("name"), str) and isinstance(s.get("digest"), dict)
        for s in told
    )
    return [s for s in told if isinstance(s["digest"].get("sha256"), str)] if fits and told else []


def _bundle(found: Findings, place: Path, report: Json, same: bool, levels: int = 0) -> None:
    try:
        for part in (place, *place.parents)[:levels]:
            if part.is_symlink():
                raise EvidenceError(f"{part}: a link: nothing here may lead elsewhere")
        sha256 = Folder(place).sha256(ABOUT)
        if sha256 != report["bundle"]["sha256"]:
            raise EvidenceError(f"{place / ABOUT}: it is not the one that the report speaks of")
        bundle = Bundle.open(place)
        if not bundle.about.complete:
            raise EvidenceError(f"{place}: incomplete: the run did not come to its end, so nothing is sealed")
        extra = sorted(set(_names(place)) - set(bundle.names) - {ABOUT})
        if extra:
            raise EvidenceError(f"{place}: not sealed, and there: {', '.join(extra[:5])}")
        for result in bundle.results:
            for entry in result.evidence:
                if entry.kind not in ("launch", "alone"):
                    bundle.record(entry)
    except EvidenceError as error:
        found.wrong.append(str(error))
        return
    number = sum(len(result.evidence) for result in bundle.results)
    found.holds.append(
        f"the bundle is whole: {len(bundle.names)} files have the SHA-256 of its seal, and all {number} "
        f"pieces of evidence that its {len(bundle.results)} results name are there"
    )
    bare = sum(result.outcome == "passed" and not result.evidence for result in bundle.results)
    if bare:
        found.open.append(f"{bare} tests passed without evidence in the bundle")
    if same:
        _rederived(found, bundle, report)


def _rederived(found: Findings, bundle: Bundle, report: Json) -> None:
    """The same document again, out of the bundle."""
    try:
        again = document(
            bundle,
            path=report["bundle"]["path"],
            made=report["made"],
            keyid=report["signing"] and report["signing"]["keyid"],
            package=report["generator"]["package"],
        )
    except EvidenceError as error:
        found.wrong.append(str(error))
        return
    if json.loads(qualify.to_bytes(again)) == report:
        found.holds.append("its verdicts and levels follow from the bundle's results and levels.toml")
    else:
        parts = ", ".join(key for key in again if again[key] != report.get(key))
        found.wrong.append(f"{qualify.REPORT} is not what the bundle makes: {parts} differ")


def _names(root: Path) -> Iterator[str]:
    """Every entry below the bundle that is no directory."""
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _trust(found: Findings, report: Json) -> None:
    signing = report["signing"]
    if signing and not found.wrong:
        found.trust.append(
            f"whose key {signing['keyid'][:16]} is: compare it with what its owner publishes, by another way"
        )
    found.stamps = list(report["stamps"])
    if report["stamps"]:
        found.trust.append("nothing in it qualifies anything: " + "; ".join(report["stamps"]))
    machines = [name for name, host in report["hosts"].items() if host["model"] is None]
    if machines:
        found.trust.append(
            f"that the evidence was recorded on the hardware named for {', '.join(machines)}, and was not "
            "changed before it was sealed: that is the word of who ran it"
        )
    suite = report["suite"]
    if suite["sha256"]:
        found.trust.append(
            f"that the suites are the released ones: compare {suite['sha256'][:16]}... with those of version "
            f"{suite['version']}, and the package's {(suite['package'] or '')[:16]}..."
        )
