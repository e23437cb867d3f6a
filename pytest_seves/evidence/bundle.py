# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle that ``--sev-artifacts DIR`` leaves, read back: docs/bundle.md describes it field by field.

Nothing in a bundle is trusted: names lead nowhere else, sizes are bounded, and every text in it may be
hostile: :mod:`pytest_seves.evidence.plain` shows one on a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError

from .folder import Folder
from .launch import Launch
from .launch_folder import launch_of

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


class Bundle:
    """One run, read. :meth:`open` has checked what it holds; launches are decoded when asked for."""

    def __init__(self, root: Path, folder: Folder, about: About, results: tuple[Result, ...]) -> None:
        self.root = root
        self.about = about
        self.results = results
        #: What a reader should be told: an incomplete run, a line that was cut.
        self.notes: tuple[str, ...] = ()
        self._folder = folder
        self._decoded: dict[str, Launch] = {}

    @classmethod
    def open(cls, root: Path, *, check: bool = True) -> Bundle:
        """Read a bundle and check it against itself.

        :param check: read every file and compare its SHA-256 too; without, only what is taken out of it.
        :raise EvidenceError: it is no bundle, of a newer version, damaged or changed; names the file.
        """
        about = _about(Folder(root), root)
        folder = Folder(root, dict(about.sealed) if about.sealed is not None else None)
        results, notes = _results(folder, about.complete)
        bundle = cls(root, folder, about, results)
        bundle.notes = (
            *([] if about.complete else [f"{root}: incomplete: the run was killed, or still runs"]),
            *notes,
        )
        if check:
            for name, sha256 in (about.sealed or {}).items():
                if (got := folder.sha256(name)) != sha256:
                    raise folder.error(name, f"it was changed: wanted SHA-256 {sha256}, got {got}")
        for manifest in bundle.manifests:
            if check and not about.complete:
                bundle._check_files(manifest)
        return bundle

    @cached_property
    def manifests(self) -> tuple[LaunchManifest, ...]:
        """The manifest of every launch that a test judged, each once, in the order of tests.

        :raise EvidenceError: one is missing, or is not the one that the test judged.
        """
        named = {e.path: e for r in self.results for e in r.evidence if e.kind in ("launch", "alone")}
        return tuple(self._manifest(evidence) for evidence in named.values())

    def manifest(self, evidence: Evidence) -> LaunchManifest:
        """The manifest of one of them."""
        return next(m for m in self.manifests if m.path == evidence.path)

    def launch(self, manifest: LaunchManifest) -> Launch:
        """The evidence of a launch, as the test had it; decoded once.

        :raise EvidenceError: a file is missing, was changed or cannot be decoded.
        """
        if manifest.path not in self._decoded:
            try:
                self._decoded[manifest.path] = launch_of(
                    manifest.raw,
                    lambda name: self.content(manifest, name),
                    folder=str(self.root / manifest.path),
                )
            except EvidenceError as error:
                where = str(self.root / manifest.path)
                raise error if where in error.message else EvidenceError(f"{where}: {error}") from error
        return self._decoded[manifest.path]

    def content(self, manifest: LaunchManifest, name: str) -> bytes:
        """One file of a launch, such as ``console.txt``.

        :raise EvidenceError: it is missing or was changed.
        """
        path = f"{manifest.path}/{name}"
        if name not in manifest.files:
            raise self._folder.error(path, f"{MANIFEST} names no such file")
        content = self._folder.read(path)
        self._compare(path, manifest.files[name], Folder.digest(content), len(content))
        return content

    def record(self, evidence: Evidence) -> dict[str, Any]:
        """The JSON of ``calls`` or ``made`` evidence.

        :raise EvidenceError: it is missing or was changed.
        """
        return self._folder.object(evidence.path, self._same(evidence))

    def facts(self, host: str) -> dict[str, Any] | None:
        """The facts file of a host; None where it never told any.

        :raise EvidenceError: it cannot be read.
        """
        name = self.about.hosts[host].facts
        there = name in self.about.sealed if self.about.sealed is not None else (self.root / name).exists()
        return self._versioned(name, self._folder.json(name), FACTS_FORMAT) if there else None

    def read(self, name: str) -> bytes:
        """Any file of the bundle.

        :raise EvidenceError: it is missing or was changed.
        """
        return self._folder.read(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Every sealed file, sorted; empty for an incomplete bundle."""
        return tuple(sorted(self.about.sealed or ()))

    def _manifest(self, evidence: Evidence) -> LaunchManifest:
        raw = self._folder.object(evidence.file, self._same(evidence))
        self._versioned(evidence.file, raw, LAUNCH_FORMAT)
        for key, kind in _MANIFEST.items():
            if not isinstance(raw.get(key), kind):
                raise self._folder.error(
                    evidence.file, f"{key}: wanted {kind.__name__}, got {raw.get(key)!r}"
                )
        for name, entry in raw["files"].items():
            if not isinstance(entry, dict) or "/" in name or not isinstance(entry.get("sha256"), str):
                raise self._folder.error(
                    evidence.file, f"files: {name[:80]!r}: wanted a plain name, and sha256"
                )
        return LaunchManifest(evidence.path, evidence.id, raw)

    def _same(self, evidence: Evidence) -> bytes:
        content = self._folder.read(evidence.file)
        if (got := Folder.digest(content)) != evidence.id:
            raise self._folder.error(
                evidence.file, f"it was changed: wanted SHA-256 {evidence.id}, got {got}"
            )
        return content

    def _check_files(self, manifest: LaunchManifest) -> None:
        for name, entry in manifest.files.items():
            path = f"{manifest.path}/{name}"
            self._compare(path, entry, self._folder.sha256(path))

    def _compare(self, path: str, entry: Mapping[str, Any], sha256: str, size: int | None = None) -> None:
        if sha256 != entry["sha256"] or size not in (None, entry.get("size")):
            wanted = entry["sha256"]
            raise self._folder.error(path, f"it was changed: wanted SHA-256 {wanted}, got {sha256}")

    def _versioned(self, name: str, raw: dict[str, Any], wanted: str) -> dict[str, Any]:
        if (raw.get("format"), raw.get("version")) != (wanted, VERSION):
            got = f"{raw.get('format')!r} version {raw.get('version')!r}"
            raise self._folder.error(name, f"wanted {wanted!r} version {VERSION}, got {got}")
        return raw


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


def _about(folder: Folder, root: Path) -> About:
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


def _results(folder: Folder, complete: bool) -> tuple[tuple[Result, ...], list[str]]:
    """Results, and what to tell of them. The last line of a run that was killed may be cut."""
    found: dict[tuple[str, str], Result] = {}
    if not complete and not (folder.root / RESULTS).exists():
        return (), []
    for number, line, ended in folder.lines(RESULTS):
        where = f"{RESULTS}:{number}"
        if not ended:
            if complete:
                raise folder.error(where, "the line is cut")
            return tuple(found.values()), [f"{folder.root / RESULTS}:{number}: cut, and left out"]
        raw = folder.object(where, line)
        _typed(folder, where, raw, _RESULT)
        if raw["outcome"] not in OUTCOMES:
            raise folder.error(where, f"outcome: wanted one of {', '.join(OUTCOMES)}, got {raw['outcome']!r}")
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
