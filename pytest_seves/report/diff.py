# SPDX-License-Identifier: GPL-2.0-or-later
"""Two bundles compared: verdicts, facts of the hosts, and launches that both have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import Bundle, LaunchManifest, Result
from pytest_seves.spec.sev import SEV_USER_DATA_STATUS

from .diff_timeline import first_ioctl, first_measured

#: Facts that differ between any two looks at one host.
_PASSING = ("time_ns", "misc.current", "es_asids_of_others", "platform_status.hex", "firmware.tail_b64")


@dataclass(frozen=True)
class Difference:
    """One thing that differs: where, what each side has, and what of it where that is not all."""

    where: str
    left: str
    right: str
    what: str = ""


@dataclass(frozen=True)
class Comparison:
    """All that differs between two runs.

    :ivar notes: what was not compared, which is no difference.
    """

    verdicts: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    launches: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not (self.verdicts or self.facts or self.launches)


def compare(left: Bundle, right: Bundle) -> Comparison:
    """Compare two runs. Where each has one host, the two are compared whatever they are called.

    :raise EvidenceError: a launch in one of them cannot be read.
    """
    pairs = _hosts(left, right)
    notes = [note for bundle in (left, right) for note in bundle.notes]
    for bundle, paired in ((left, {a for a, _ in pairs}), (right, {b for _, b in pairs})):
        notes += [f"{bundle.root}: only it has host {h}" for h in bundle.about.hosts if h not in paired]
    verdicts = [d for a, b in pairs for d in _verdicts(left, right, a, b)]
    facts = [d for a, b in pairs for d in _facts(left, right, a, b)]
    launches: list[Difference] = []
    for a, b in pairs:
        ours, theirs = _launches(left, a), _launches(right, b)
        alone = len(ours.keys() ^ theirs.keys())
        notes += [f"{a}: {alone} guests were launched in one of the runs only"] if alone else []
        for key in [key for key in ours if key in theirs]:
            launches += _launch(left, right, ours[key], theirs[key])
    return Comparison(tuple(verdicts), tuple(facts), tuple(launches), tuple(notes))


def lines(comparison: Comparison, left: str, right: str) -> Iterator[str]:
    """The comparison for a terminal; what comes from the bundles is not escaped here."""
    for note in comparison.notes:
        yield f"note: {note}"
    for title, differences in (
        ("verdicts", comparison.verdicts),
        ("facts", comparison.facts),
        ("launches", comparison.launches),
    ):
        places = {difference.where for difference in differences}
        yield f"{title}: {len(places)} differ" if differences else f"{title}: equal"
        alike: dict[tuple[str, str, str], list[str]] = {}
        for found in differences:  # a launch differs as the one before it did, more often than not
            alike.setdefault((found.what, found.left, found.right), []).append(found.where)
        for (what, one, other), where in alike.items():
            for place in where if not what else []:
                yield f"  {place}"
            if what:
                more = f" and {len(where) - 1} more" if len(where) > 1 else ""
                yield f"  {what} ({where[0]}{more})"
            yield f"    {left}: {one}"
            yield f"    {right}: {other}"


def _hosts(left: Bundle, right: Bundle) -> list[tuple[str, str]]:
    ours, theirs = list(left.about.hosts), list(right.about.hosts)
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    return [(name, name) for name in ours if name in theirs]


def _verdicts(left: Bundle, right: Bundle, a: str, b: str) -> Iterator[Difference]:
    ours, theirs = _results(left, a), _results(right, b)
    for test in [*ours, *(test for test in theirs if test not in ours)]:
        one, other = ours.get(test), theirs.get(test)
        if one is None or other is None or one.outcome != other.outcome:
            yield Difference(test, _verdict(one), _verdict(other))


def _results(bundle: Bundle, host: str) -> dict[str, Result]:
    """Results by the name of the test as it is with one host alone."""
    mine = (result for result in bundle.results if result.host == host)
    return {result.name: result for result in mine}


def _verdict(result: Result | None) -> str:
    if result is None:
        return "not run"
    return f"{result.outcome}: {result.why}" if result.why else result.outcome


def _facts(left: Bundle, right: Bundle, a: str, b: str) -> Iterator[Difference]:
    ours, theirs = _flat(_raw(left, a)), _flat(_raw(right, b))
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name, "not told"), theirs.get(name, "not told")
        if one != other and not any(name == p or name.startswith(f"{p}.") for p in _PASSING):
            yield Difference(f"{a}: {name}", one, other)


def _raw(bundle: Bundle, host: str) -> Mapping[str, Any]:
    record = bundle.facts(host)
    raw = dict(record.get("raw") or {}) if record else {}
    status = raw.get("platform_status")
    told = status.get("hex") if isinstance(status, dict) else None
    if isinstance(told, str) and len(told) == 2 * SEV_USER_DATA_STATUS.size:
        platform = SEV_USER_DATA_STATUS.decode(bytes.fromhex(told))
        raw["platform"] = {name: value for name, value in platform.items() if name != "guest_count"}
    return raw


def _flat(value: object, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        inner = (_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items())
        return {key: text for found in inner for key, text in found.items()}
    return {name: json.dumps(value)}


def _launches(bundle: Bundle, host: str) -> dict[str, LaunchManifest]:
    """The first launch of each guest. What a test makes by chance for its guest is a guest of its own."""
    found: dict[str, LaunchManifest] = {}
    for manifest in bundle.manifests:
        if manifest.host == host:
            found.setdefault(json.dumps([manifest.raw.get("kind"), manifest.spec], sort_keys=True), manifest)
    return found


def _launch(left: Bundle, right: Bundle, a: LaunchManifest, b: LaunchManifest) -> Iterator[Difference]:
    ours, theirs = left.launch(a), right.launch(b)
    where = f"{a.path} | {b.path}"
    try:
        measured = first_measured(ours.timeline, theirs.timeline)
        ioctl = first_ioctl(ours.timeline, theirs.timeline)
    except ValueError as error:
        raise EvidenceError(f"{where}: a call cannot be decoded: {error}") from error
    if measured:
        yield Difference(where, measured[1], measured[2], f"launch digest: {measured[0]}")
    if ioctl:
        yield Difference(where, *ioctl, "first differing ioctl")
    if ours.exit != theirs.exit:
        yield Difference(where, str(ours.exit), str(theirs.exit), "exit")
