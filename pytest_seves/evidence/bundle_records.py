# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bundle says, as values: the run, each test's result, each launch's manifest. Checked when read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError

from .folder import Folder

FORMAT, VERSION = "pytest-seves-bundle", 1
LAUNCH_FORMAT, CALLS_FORMAT, FACTS_FORMAT = (f"pytest-seves-{what}" for what in ("launch", "calls", "facts"))
ABOUT, RESULTS = "bundle.json", "results.jsonl"
MANIFEST = "launch.json"
OUTCOMES = (
    "passed",
    "failed",
    "error",
    "skipped",
    "undecided",
    "known defect",
    "unexpected pass",
    "blocked",
)


@dataclass(frozen=True)
class HostAbout:
    """A host of the run.

    :ivar model: the profile of the model host, None for a machine.
    :ivar description: what it is, without where it is.
    :ivar facts: name of its facts file, which a host that was never reached does not have.
    """

    name: str
    model: str | None
    description: str
    facts: str


@dataclass(frozen=True)
class About:
    """The run. `complete` is False for one that was killed: it has no seal, and verdicts may be missing."""

    suite: Mapping[str, str]
    run: str
    started: str
    ended: str | None
    exit_status: int | None
    arguments: tuple[str, ...]
    python: str
    plugins: Mapping[str, str]
    defects: tuple[str, ...]
    hosts: Mapping[str, HostAbout]
    vcpus: tuple[int, ...]
    policies: tuple[int, ...]
    launches: int
    requests: int
    blocked: Mapping[str, Mapping[str, Any]]
    sealed: Mapping[str, str] | None

    @property
    def complete(self) -> bool:
        """The run came to its end, whatever that was."""
        return self.sealed is not None


@dataclass(frozen=True)
class Evidence:
    """Something that a test judged.

    :ivar kind: ``launch``, ``alone`` (a launch that nobody shares), ``calls`` or ``made`` (by the test).
    :ivar path: name of its folder (launches) or its file.
    :ivar id: SHA-256 of the file, of a launch of its launch.json, which names all else by its SHA-256.
    :ivar request: what was asked for: the GuestSpec of a launch.
    """

    kind: str
    path: str
    id: str
    request: Mapping[str, Any] | None = None

    @property
    def file(self) -> str:
        """The file that `id` is the SHA-256 of."""
        return f"{self.path}/{MANIFEST}" if self.kind in ("launch", "alone") else self.path


@dataclass(frozen=True)
class Result:
    """What became of one test.

    :ivar rig: it was not judged, since something of the rig was broken.
    :ivar why: one line, empty for a test that passed.
    """

    test: str
    host: str
    requirement: str | None
    outcome: str
    why: str
    rig: bool
    parameters: Mapping[str, Any]
    started: str
    duration_s: float
    evidence: tuple[Evidence, ...]

    @property
    def name(self) -> str:
        """The test's node id as it is in a run on one host."""
        return without_host(self.test, self.host)


@dataclass(frozen=True)
class LaunchManifest:
    """The launch.json of one launch; `raw` is all of it."""

    path: str
    id: str
    raw: Mapping[str, Any]

    @property
    def host(self) -> str:
        """The host's name."""
        return str(self.raw["host"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """The GuestSpec."""
        spec: Mapping[str, Any] = self.raw["spec"]
        return spec

    @property
    def argv(self) -> tuple[str, ...]:
        """The VMM's command line."""
        return tuple(self.raw["argv"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """VMM, firmware, kernel and files handed to the guest, with their SHA-256."""
        environment: Mapping[str, Any] = self.raw["environment"]
        return environment

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Size and SHA-256 of each file beside it, and whether it is derived from the others."""
        files: Mapping[str, Mapping[str, Any]] = self.raw["files"]
        return files


_MANIFEST: dict[str, type] = {
    "host": str,
    "spec": dict,
    "argv": list,
    "environment": dict,
    "exit": dict,
    "phase": str,
    "outputs": dict,
    "files": dict,
}
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEXT_OR_NONE = (str, type(None))
_ABOUT: dict[str, tuple[type, ...]] = {
    "suite": (dict,),
    "run": (str,),
    "started": (str,),
    "ended": _TEXT_OR_NONE,
    "exit_status": (int, type(None)),
    "arguments": (list,),
    "python": (str,),
    "plugins": (dict,),
    "defects": (list,),
    "hosts": (dict,),
    "vcpus": (list,),
    "policies": (list,),
    "launches": (int,),
    "requests": (int,),
    "blocked": (dict,),
    "sealed": (dict, type(None)),
}
_RESULT: dict[str, tuple[type, ...]] = {
    "test": (str,),
    "host": (str,),
    "requirement": _TEXT_OR_NONE,
    "outcome": (str,),
    "why": (str,),
    "rig": (bool,),
    "parameters": (dict,),
    "started": (str,),
    "duration_s": (int, float),
    "evidence": (list,),
}


def without_host(test: str, host: str) -> str:
    """A test's name as it is with one host alone: with several, it ends with its host's."""
    return test.replace(f"-{host}]", "]").replace(f"[{host}]", "")


def read_about(root: Path) -> About:
    """What a bundle says of its run.

    :raise EvidenceError: it is no bundle, of a newer version, or damaged.
    """
    folder = Folder(root)
    if not root.is_dir():
        raise EvidenceError(f"{root}: wanted the directory that --sev-artifacts left, got no directory")
    if not (root / ABOUT).exists():
        raise EvidenceError(f"{root / ABOUT}: there is none, so {root} is no bundle of --sev-artifacts")
    raw = folder.json(ABOUT)
    version = raw.get("version")
    if raw.get("format") != FORMAT:
        raise folder.error(ABOUT, f"wanted format {FORMAT!r}, got {raw.get('format')!r}")
    if isinstance(version, int) and version > VERSION:
        suite = raw.get("suite")
        by = f" by pytest-seves {suite.get('version')}" if isinstance(suite, dict) else ""
        raise folder.error(
            ABOUT, f"version {version} was written{by}; this one reads version {VERSION}: install a newer one"
        )
    if version != VERSION:
        raise folder.error(ABOUT, f"wanted version {VERSION}, got {version!r}")
    _typed(folder, ABOUT, raw, _ABOUT)
    for name in raw["hosts"]:
        if not _HOST.fullmatch(name):
            raise folder.error(ABOUT, f"hosts: {name[:80]!r} is no name of a host")
    for row in raw["blocked"].values():
        if not isinstance(row, dict) or not isinstance(row.get("why"), str):
            raise folder.error(ABOUT, f"blocked: wanted objects with why, got {str(row)[:80]!r}")
    try:
        hosts = {
            name: HostAbout(name, host["model"], str(host["description"]), str(host["facts"]))
            for name, host in raw["hosts"].items()
        }
    except (KeyError, TypeError) as error:
        raise folder.error(ABOUT, f"hosts: {type(error).__name__}: {error}") from None
    values: dict[str, Any] = {
        key: tuple(raw[key]) if isinstance(raw[key], list) else raw[key] for key in _ABOUT
    }
    values["hosts"] = hosts
    return About(**values)


def read_results(folder: Folder, about: About) -> tuple[tuple[Result, ...], list[str]]:
    """Results, and what to tell of them. The last line of a run that was killed may be cut."""
    found: dict[tuple[str, str], Result] = {}
    if not about.complete and not (folder.root / RESULTS).exists():
        return (), []
    for number, line, ended in folder.lines(RESULTS):
        where = f"{RESULTS}:{number}"
        if not ended:
            if about.complete:
                raise folder.error(where, "the line is cut")
            return tuple(found.values()), [f"{folder.root / RESULTS}:{number}: cut, and left out"]
        raw = folder.object(where, line)
        _typed(folder, where, raw, _RESULT)
        if raw["outcome"] not in OUTCOMES:
            raise folder.error(where, f"outcome: wanted one of {', '.join(OUTCOMES)}, got {raw['outcome']!r}")
        if raw["host"] not in about.hosts:
            raise folder.error(where, f"host: {raw['host'][:80]!r} is not among those of {ABOUT}")
        evidence = tuple(_evidence(folder, where, entry) for entry in raw["evidence"])
        result = Result(**{**{key: raw[key] for key in _RESULT}, "evidence": evidence})
        found[result.test, result.host] = result
    return tuple(found.values()), []


def _evidence(folder: Folder, where: str, raw: object) -> Evidence:
    texts = ("kind", "path", "id")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) for key in texts):
        raise folder.error(where, f"evidence: wanted kind, path and id, got {str(raw)[:200]}")
    request = raw.get("request")
    if request is not None and not isinstance(request, dict):
        raise folder.error(where, f"evidence: request: wanted an object, got {str(request)[:200]}")
    return Evidence(raw["kind"], raw["path"], raw["id"], request)


def _typed(folder: Folder, where: str, raw: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for key, allowed in kinds.items():
        if key not in raw:
            raise folder.error(where, f"{key} is missing")
        if not isinstance(raw[key], allowed):
            wanted = " or ".join(kind.__name__ for kind in allowed)
            raise folder.error(where, f"{key}: wanted {wanted}, got {str(raw[key])[:80]!r}")


def read_manifest(folder: Folder, evidence: Evidence, content: bytes) -> LaunchManifest:
    """A launch.json.

    :raise EvidenceError: it is none, or of another version.
    """
    name = evidence.file
    raw = versioned(folder, name, folder.object(name, content), LAUNCH_FORMAT)
    for key, kind in _MANIFEST.items():
        if not isinstance(raw.get(key), kind):
            raise folder.error(name, f"{key}: wanted {kind.__name__}, got {str(raw.get(key))[:80]!r}")
    for file, entry in raw["files"].items():
        if not isinstance(entry, dict) or "/" in file or not isinstance(entry.get("sha256"), str):
            raise folder.error(name, f"files: {file[:80]!r}: wanted a plain name, and sha256")
    return LaunchManifest(evidence.path, evidence.id, raw)


def versioned(folder: Folder, name: str, raw: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The same, if it is of this format and version.

    :raise EvidenceError: it is not.
    """
    if (raw.get("format"), raw.get("version")) != (wanted, VERSION):
        got = f"{raw.get('format')!r} version {raw.get('version')!r}"
        raise folder.error(name, f"wanted {wanted!r} version {VERSION}, got {got}")
    return raw
