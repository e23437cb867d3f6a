# SPDX-License-Identifier: GPL-2.0-or-later
"""The qualification report as a document: report.json, of which the page is made. Writes nothing.

What speaks against a qualification is looked for in what the run left behind, never taken from what it
says of itself alone. docs/report.md describes the fields, ``schemas/report.json`` checks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pytest_seves import __version__
from pytest_seves.errors import EvidenceError, UsageError
from pytest_seves.evidence.bundle import ABOUT, RESULTS, Bundle, Evidence, HostAbout, Result
from pytest_seves.evidence.folder import Folder
from pytest_seves.host.facts_file import facts_of

from . import levels, plan, product, reasons
from .catalogue import CATALOGUE, KNOWN_DEFECTS, Requirement, parse_requirements
from .judgement import Case, Conclusion, Judged, conclude
from .launch_drawn import drawn
from .matrix import columns, row
from .summary import order
from .words import bounded

FORMAT, VERSION = "pytest-seves-report", 1
MODEL = "MODEL: NOT A QUALIFICATION"
#: Files that only a model host leaves.
_MODEL_FILES = ("guests.jsonl", "firmware.jsonl", "model.log")
Json = dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """A bundle with what judges it."""

    bundle: Bundle
    catalogue: Mapping[str, Requirement]
    levels: levels.Levels
    plan: plan.Plan | None
    evidence: Mapping[str, int]


def document(bundle: Bundle, *, path: str | None, made: str, keyid: str | None, package: str) -> Json:
    """The report of a bundle, as JSON.

    :param path: where the bundle is, from the report; None where it does not lie with it.
    :param made: the time, UTC.
    :param keyid: of the key that the report is going to be signed with.
    :param package: what makes it and its page, as a hash over the files of this package.
    :raise EvidenceError: the bundle is damaged.
    """
    about = bundle.about
    _sound(bundle)
    names = {e.path: e for result in bundle.results for e in result.evidence}
    evidence = [_evidence(entry) for entry in names.values()]
    run = _Run(
        bundle, _catalogue(bundle), _levels(bundle), _plan(bundle), {p: n for n, p in enumerate(names)}
    )
    hosts = {name: _host(run, host) for name, host in about.hosts.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "generator": {"name": "pytest-seves", "version": __version__, "package": package},
        "made": made,
        "signing": None if keyid is None else {"keyid": keyid},
        "stamps": list(dict.fromkeys(stamp for host in hosts.values() for stamp in host["stamps"])),
        "bundle": {
            "path": path,
            "sha256": Folder.digest((bundle.root / ABOUT).read_bytes()),
            "run": bounded(about.run),
            "started": bounded(about.started),
            "ended": about.ended and bounded(about.ended),
            "exit_status": about.exit_status,
            "arguments": [bounded(argument) for argument in about.arguments],
            "python": bounded(about.python),
            "plugins": {bounded(name): bounded(version) for name, version in about.plugins.items()},
            "defects": [bounded(name) for name in about.defects],
            "vcpus": list(about.vcpus),
            "policies": list(about.policies),
            "launches": about.launches,
            "requests": about.requests,
            "files": len(bundle.names),
            "complete": about.complete,
            "notes": [
                bounded(note.replace(f"{bundle.root}/", "").replace(str(bundle.root), "bundle"))
                for note in bundle.notes
            ],
        },
        "suite": _suite(run),
        "hosts": hosts,
        "results": [_result(run, result) for result in bundle.results],
        "evidence": evidence,
        "launch": drawn(bundle),
    }


def _sound(bundle: Bundle) -> None:
    """What the reader leaves to who uses it.

    :raise EvidenceError: a value of the wrong kind, or a name that leads elsewhere.
    """
    about = bundle.about
    numbers = (*about.vcpus, *about.policies)
    if not all(type(number) is int and 0 <= number < 1 << 32 for number in numbers):
        raise EvidenceError(f"{bundle.root / ABOUT}: vcpus, policies: wanted numbers of 32 bits")
    if not all(isinstance(row, Mapping) for row in about.blocked.values()):
        raise EvidenceError(f"{bundle.root / ABOUT}: blocked: wanted an object for each host")
    for result in bundle.results:
        where = f"{bundle.root / RESULTS}: {bounded(result.test, 200)!r}"
        if result.host not in about.hosts:
            raise EvidenceError(f"{where}: on {bounded(result.host, 200)!r}, which is no host of the run")
        if not isfinite(result.duration_s):
            raise EvidenceError(f"{where}: duration_s: wanted seconds, got {result.duration_s}")
        for entry in result.evidence:
            if any(part in ("", ".", "..") for part in entry.path.split("/")):
                raise EvidenceError(f"{where}: {bounded(entry.path, 200)!r}: wanted a name below the bundle")


def _evidence(entry: Evidence) -> Json:
    return {"kind": bounded(entry.kind), "path": bounded(entry.path), "id": bounded(entry.id)}


def _text(bundle: Bundle, name: str) -> str | None:
    there = name in bundle.names if bundle.about.complete else (bundle.root / name).is_file()
    return bundle.read(name).decode("utf-8", "replace") if there else None


def _catalogue(bundle: Bundle) -> Mapping[str, Requirement]:
    text = _text(bundle, CATALOGUE)
    try:
        return parse_requirements(text, CATALOGUE) if text is not None else {}
    except UsageError as error:
        raise EvidenceError(f"{bundle.root}: {error}") from error


def _levels(bundle: Bundle) -> levels.Levels:
    text = _text(bundle, levels.LEVELS)
    try:
        return levels.parse(text, levels.LEVELS, _catalogue(bundle)) if text is not None else levels.NONE
    except UsageError as error:
        raise EvidenceError(f"{bundle.root}: {error}") from error


def _plan(bundle: Bundle) -> plan.Plan | None:
    text = _text(bundle, plan.NAME)
    return None if text is None else plan.read(text.encode())


def _suite(run: _Run) -> Json:
    told = run.bundle.about.suite
    known = run.plan
    return {
        "name": bounded(told.get("name", "")),
        "version": bounded(told.get("version", "")),
        "sha256": known.sha256 if known else None,
        "files": len(known.files) if known else None,
        "package": known.package if known else None,
        "plugins": {bounded(name): bounded(version) for name, version in known.plugins.items()}
        if known
        else {},
        "environment": {bounded(k): bounded(v) for k, v in known.environment.items()} if known else {},
        "planned": len(known.tests) if known and known.tests is not None else None,
    }


def _result(run: _Run, result: Result) -> Json:
    return {
        "host": result.host,
        "test": bounded(result.test),
        "requirement": result.requirement and bounded(result.requirement),
        "outcome": result.outcome,
        "why": bounded(result.why),
        "duration_s": round(float(result.duration_s), 3),
        "evidence": [run.evidence[entry.path] for entry in result.evidence],
    }


def _host(run: _Run, host: HostAbout) -> Json:
    bundle, about = run.bundle, run.bundle.about
    record = bundle.facts(host.name)
    facts = facts_of(record) if record else None
    raw = record["raw"] if record else {}
    own = [result for result in bundle.results if result.host == host.name]
    judged = _judged(run, host.name, own, reasons.Seen.of(facts, own))
    general, stamps = _general(run, host, judged)
    concluded = [
        conclude(level, judged, run.catalogue, general, about.vcpus, about.policies)
        for level in run.levels.levels
    ]
    blocked = about.blocked.get(host.name)
    shape = columns(judged.values(), about.vcpus, about.policies)
    return {
        "description": bounded(host.description),
        "model": host.model and bounded(host.model),
        "stamps": stamps,
        "against": general,
        "product": [
            {key: value and bounded(value) for key, value in line.items()}
            for line in product.rows(facts, raw)
        ],
        "blocked": None if blocked is None else bounded(blocked.get("why", "blocked")),
        "levels": [_level(conclusion) for conclusion in concluded],
        "columns": [column.to_json() for column in shape],
        "requirements": [_requirement(entry, shape) for entry in judged.values()],
        "not_run": _not_run(judged.values()),
    }


def _judged(run: _Run, host: str, results: Sequence[Result], seen: reasons.Seen) -> dict[str, Judged]:
    """Every requirement of the catalogue, and any other that a test names, in order."""
    cases: dict[str, list[Case]] = {identifier: [] for identifier in run.catalogue}
    for result in results:
        if result.requirement is not None:
            cases.setdefault(result.requirement, []).append(_case(result, run.levels.reasons, seen))
    for test, requirement in _left_out(run, host, results):
        cases.setdefault(requirement, []).append(Case(test, "not run", None))
    return {
        name: Judged(name, run.catalogue.get(name), tuple(cases[name])) for name in sorted(cases, key=order)
    }


def _case(result: Result, known: Sequence[levels.Reason], seen: reasons.Seen) -> Case:
    if result.outcome != "skipped":
        return Case(
            result.test, "error" if result.rig and result.outcome != "blocked" else result.outcome, result
        )
    confirmed = reasons.explained(result, known, seen)
    return Case(result.test, "not applicable" if confirmed else "not explained", result, confirmed)


def _left_out(run: _Run, host: str, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Tests that a whole run has on this host, and this one has not."""
    if run.plan is None or run.plan.tests is None:
        return []
    hosts = run.bundle.about.hosts
    decided = {result.test for result in results}
    missing = ((test, requirement) for test, requirement in run.plan.tests.items() if test not in decided)
    return [(test, requirement) for test, requirement in missing if _owner(test, hosts) in (None, host)]


def _owner(test: str, hosts: Iterable[str]) -> str | None:
    """The host that a test is of, by the end of its name; None where it names none, as with a single host."""
    named = (name for name in hosts if test.endswith((f"-{name}]", f"[{name}]")))
    return max(named, key=len, default=None)


def _general(run: _Run, host: HostAbout, judged: Mapping[str, Judged]) -> tuple[list[str], list[str]]:
    """Objections to the whole run on a host, and those of them that are stamped on every page."""
    about, stamps, against = run.bundle.about, [], []
    left = [name for name in _MODEL_FILES if f"{host.name}/{name}" in run.bundle.names]
    if host.model is not None or left:
        stamps.append(MODEL)
        against.append("the host is the model, software: it qualifies nothing")
    if host.model is None and left:
        against.append(f"the run calls {host.name} a machine, and has the model's {', '.join(left)}")
    if about.defects:
        stamps.append("MADE WRONG ON PURPOSE: NOT A QUALIFICATION")
        against.append(
            f"--sev-defect {', '.join(map(bounded, about.defects))}: something was made wrong on purpose"
        )
    launched = [d for m in run.bundle.manifests for d in m.environment.get("defects", ())]
    if launched and not about.defects:
        against.append(f"launches were made wrong on purpose, and the run does not say so: {launched[0]}")
    if _replayed(about.arguments):
        stamps.append("REPLAYED: NOT A QUALIFICATION")
        against.append("the run judged archived evidence again (--sev-replay), and no host")
    if not about.complete or about.ended is None:
        stamps.append("INCOMPLETE: NOT A QUALIFICATION")
        against.append("the run did not come to its end: its bundle is not sealed")
    if about.exit_status not in (0, 1):
        against.append(f"the run ended with exit status {about.exit_status}")
    if host.name in about.blocked:
        against.append(f"the host was blocked: {bounded(about.blocked[host.name].get('why', ''))}")
    against += _of_the_plan(run)
    if repeated := _repeated(run.bundle):
        against.append(f"{repeated} tests were decided more than once: only one verdict of each is here")
    untied = sum(result.requirement is None and result.outcome != "passed" for result in run.bundle.results)
    if untied:
        against.append(f"{untied} tests that name no requirement did not pass")
    return [bounded(why) for why in against], stamps


def _of_the_plan(run: _Run) -> list[str]:
    if run.plan is None:
        return [f"the bundle has no {plan.NAME}: what was left out cannot be known"]
    if run.plan.tests is None:
        return [f"what a whole run has is not known: {bounded(run.plan.why)}"]
    found, tests, hashed = [], run.plan.tests, set(run.plan.files.values())
    odd = sum(r.requirement is not None and r.test not in tests for r in run.bundle.results)
    if odd:
        found.append(f"{odd} tests are none of the suites as they are without the run's options")
    if moved := sum(tests.get(r.test, r.requirement) != r.requirement for r in run.bundle.results):
        found.append(f"{moved} tests name another requirement than in the suites")
    for name in (CATALOGUE, KNOWN_DEFECTS, levels.LEVELS):
        text = _text(run.bundle, name)
        if text is not None and Folder.digest(text.encode("utf-8", "surrogatepass")) not in hashed:
            found.append(f"{name} is not the one of the suites: it was changed during the run")
    return found


def _replayed(arguments: Sequence[str]) -> bool:
    return any(str(word).partition("=")[0] == "--sev-replay" for word in arguments)


def _repeated(bundle: Bundle) -> int:
    lines = bundle.read(RESULTS).count(b"\n") if RESULTS in bundle.names else len(bundle.results)
    return lines - len(bundle.results)


def _level(conclusion: Conclusion) -> Json:
    level = conclusion.level
    return {
        "name": level.name,
        "sentence": level.sentence,
        "reached": conclusion.reached,
        "requirements": list(level.requirements),
        "vcpus": list(level.vcpus),
        "policies": list(level.policies),
        "against": [{"id": identifier, "why": why} for identifier, why in conclusion.against],
        "not_applicable": [
            {"id": j.id, "why": [bounded(why) for why in j.reasons]} for j in conclusion.not_applicable
        ],
        "should": [{"id": j.id, "why": j.objections} for j in conclusion.should],
    }


def _requirement(judged: Judged, shape: Sequence[Any]) -> Json:
    told = judged.requirement
    notes = dict.fromkeys(
        bounded(case.why)
        for case in judged.cases
        if case.outcome not in ("passed", "not applicable", "not run")
    )
    return {
        "id": bounded(judged.id),
        "level": told.level if told else None,
        "sentence": told.sentence if told else None,
        "source": told.source if told else None,
        "verdict": judged.verdict,
        "counts": dict(judged.counts),
        "notes": list(notes)[:20],
        "cells": row(judged.cases, shape),
    }


def _not_run(judged: Any) -> list[Json]:
    """What was left out, by reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for entry in judged:
        for case in entry.cases:
            if case.outcome in ("not applicable", "not explained", "not run"):
                key = case.outcome, bounded(case.why), case.note
                found.setdefault(key, []).append(bounded(case.test))
        if not entry.cases:
            found.setdefault(("not run", "no test of the requirement was run", ""), []).append(
                bounded(entry.id)
            )
    return [
        {"outcome": outcome, "why": why, "confirmed": note, "tests": tests}
        for (outcome, why, note), tests in found.items()
    ]
