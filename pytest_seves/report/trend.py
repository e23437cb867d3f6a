# SPDX-License-Identifier: GPL-2.0-or-later
"""Many runs side by side: which verdicts changed, which tests flake, how long launches take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pytest_seves.errors import EvidenceError, UsageError
from pytest_seves.evidence.bundle import ABOUT, Bundle, LaunchManifest
from pytest_seves.host.facts_file import facts_of
from pytest_seves.spec import kvm
from pytest_seves.spec.sev import Policy

from .html import MARKS, environment, style
from .product import rows
from .qualify import EVIDENCE
from .summary import BAD, OUTCOMES, order

#: A test on a host, and a requirement on it.
Key = tuple[str, str]
#: Changes of tests that are shown one by one.
_MOST = 500
_WORDS = {**MARKS, "skipped": MARKS["not applicable"]}


@dataclass(frozen=True)
class RunRead:
    """What is compared of one run.

    :param product: by host, (part, what it is) of all that was judged.
    :param tests: outcome by (host, test).
    :param requirements: the worst outcome by (host, requirement).
    :param launch_ms: by (host, vCPUs), milliseconds from the first call to the first KVM_RUN of each launch.
    """

    place: str
    run: str
    started: str
    suite: str
    complete: bool
    stamps: tuple[str, ...]
    product: Mapping[str, tuple[tuple[str, str], ...]]
    tests: Mapping[Key, str]
    requirements: Mapping[Key, str]
    launch_ms: Mapping[tuple[str, int], Sequence[float]]


def read(place: Path) -> RunRead:
    """One run.

    :param place: a bundle, or a report's directory with one in it.
    :raise EvidenceError: it is damaged.
    """
    root = next((folder for folder in (place, place / EVIDENCE) if (folder / ABOUT).is_file()), place)
    bundle = Bundle.open(root, check=False)
    about, worst = bundle.about, dict[Key, str]()
    for result in bundle.results:
        if result.requirement is not None:
            key = result.host, result.requirement
            worst[key] = min(worst.get(key, result.outcome), result.outcome, key=_badness)
    models = [f"{name}: model, {host.model}" for name, host in about.hosts.items() if host.model is not None]
    defects = [f"defect: {name}" for name in about.defects]
    return RunRead(
        place=str(place),
        run=about.run,
        started=about.started,
        suite=str(about.suite.get("version", "")),
        complete=about.complete,
        stamps=(*models, *defects),
        product={name: _product(bundle, name) for name in about.hosts},
        tests={(result.host, result.test): result.outcome for result in bundle.results},
        requirements=worst,
        launch_ms=_launch_ms(bundle),
    )


def page(runs: Iterable[RunRead]) -> bytes:
    """The page: one file, nothing from elsewhere. A run that is given twice is in it once."""
    from .trend_plot import plot

    once = {(run.started, run.run): run for run in runs}
    ordered = [once[key] for key in sorted(once)]
    if not ordered:
        raise UsageError("trend: wanted at least one run")
    hosts = sorted({host for run in ordered for host in run.product})
    template = environment().get_template("trend.html")
    return template.render(
        runs=ordered,
        hosts=hosts,
        marks=_WORDS,
        changes=_changes(ordered),
        flakes=_flakes(ordered),
        products=[(host, _product_changes(ordered, host)) for host in hosts],
        plots=[
            (host, plot([_medians(run, host) for run in ordered]), _table(ordered, host)) for host in hosts
        ],
        **style("report.css"),
    ).encode("utf-8", "strict")


def _badness(outcome: str) -> int:
    return ("blocked", *OUTCOMES).index(outcome)


def _product(bundle: Bundle, host: str) -> tuple[tuple[str, str], ...]:
    record = bundle.facts(host)
    facts = facts_of(record) if record else None
    lines = rows(facts, record["raw"] if record else {})
    told = (
        (str(line["what"]), f"{line['value'] or 'unknown'} {line['hash'] or ''}".strip()) for line in lines
    )
    return (
        *told,
        ("Suites", str(bundle.about.suite.get("version", ""))),
        ("Defects", ", ".join(bundle.about.defects)),
    )


def _launch_ms(bundle: Bundle) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for manifest in bundle.manifests:
        spec, taken = manifest.spec, _first_run_ms(bundle, manifest)
        es = isinstance(spec.get("policy"), int) and spec["policy"] & Policy.ES
        if taken is not None and es and not spec.get("faults") and isinstance(spec.get("vcpus"), int):
            found.setdefault((manifest.host, spec["vcpus"]), []).append(taken)
    return found


def _first_run_ms(bundle: Bundle, manifest: LaunchManifest) -> float | None:
    """From the first recorded call to the first KVM_RUN; None where no vCPU ran."""
    lines = bundle.content(manifest, "timeline.jsonl").splitlines()
    start: int | None = None
    try:
        for line in lines[1:]:
            call = json.loads(line)
            start = call["t"] if start is None else start
            if call.get("req") == kvm.KVM_RUN:
                return float(call["t"] - start) / 1e6
            if call.get("end"):
                break
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{bundle.root / manifest.path}: timeline.jsonl: {error}") from error
    return None


def _medians(run: RunRead, host: str) -> dict[int, float]:
    return {vcpus: median(taken) for (name, vcpus), taken in run.launch_ms.items() if name == host}


def _table(runs: Sequence[RunRead], host: str) -> list[tuple[int, list[float | None]]]:
    counts = sorted({vcpus for run in runs for name, vcpus in run.launch_ms if name == host})
    return [(count, [_medians(run, host).get(count) for run in runs]) for count in counts]


def _changes(runs: Sequence[RunRead]) -> list[dict[str, Any]]:
    """Requirements whose verdict was not the same in all runs that have one."""
    keys = {key for run in runs for key in run.requirements}
    found = []
    for host, identifier in sorted(keys, key=lambda key: (key[0], order(key[1]))):
        verdicts = [run.requirements.get((host, identifier)) for run in runs]
        if len({verdict for verdict in verdicts if verdict is not None}) > 1:
            found.append({"host": host, "id": identifier, "verdicts": verdicts})
    return found


def _flakes(runs: Sequence[RunRead]) -> list[dict[str, Any]]:
    """Tests with two outcomes on the same product: one of them a bad one."""
    seen: dict[tuple[Key, tuple[tuple[str, str], ...]], list[tuple[int, str]]] = {}
    for number, run in enumerate(runs, 1):
        for key, outcome in run.tests.items():
            seen.setdefault((key, run.product.get(key[0], ())), []).append((number, outcome))
    found: list[tuple[int, dict[str, Any]]] = []
    for ((host, test), _), outcomes in seen.items():
        kinds = {outcome for _, outcome in outcomes}
        if len(kinds) > 1 and kinds & {*BAD, "blocked"}:
            bad = [number for number, outcome in outcomes if outcome in (*BAD, "blocked")]
            told = ", ".join(f"{outcome} in {number}" for number, outcome in outcomes if number in bad)
            flake = {"host": host, "test": test, "bad": len(bad), "of": len(outcomes), "told": told}
            found.append((len(bad), flake))
    return [flake for _, flake in sorted(found, key=lambda entry: -entry[0])[:_MOST]]


def _product_changes(runs: Sequence[RunRead], host: str) -> list[dict[str, Any]]:
    """What was another than in the run before."""
    found = []
    before: Mapping[str, str] = {}
    for number, run in enumerate(runs, 1):
        now = dict(run.product.get(host, ()))
        for what, value in now.items():
            if before and before.get(what) != value:
                found.append(
                    {"run": number, "what": what, "before": before.get(what, "unknown"), "now": value}
                )
        before = now or before
    return found
