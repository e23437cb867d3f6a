# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle that ``--sev-artifacts DIR`` leaves, read back: docs/bundle.md describes it field by field.

Nothing in a bundle is trusted: names lead nowhere else, sizes are bounded, and every text in it may be
hostile: :mod:`pytest_seves.text` shows one on a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError

from .bundle_records import (
    ABOUT,
    CALLS_FORMAT,
    FACTS_FORMAT,
    FORMAT,
    LAUNCH_FORMAT,
    MANIFEST,
    OUTCOMES,
    RESULTS,
    VERSION,
    About,
    Evidence,
    HostAbout,
    LaunchManifest,
    Result,
    read_about,
    read_manifest,
    read_results,
    versioned,
)
from .folder import Folder
from .launch import Launch
from .launch_folder import launch_of

__all__ = [
    "ABOUT",
    "CALLS_FORMAT",
    "FACTS_FORMAT",
    "FORMAT",
    "LAUNCH_FORMAT",
    "MANIFEST",
    "OUTCOMES",
    "RESULTS",
    "VERSION",
    "About",
    "Bundle",
    "Evidence",
    "HostAbout",
    "LaunchManifest",
    "Result",
    "read_about",
]


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
        about = read_about(root)
        folder = Folder(root, dict(about.sealed) if about.sealed is not None else None)
        results, notes = read_results(folder, about.complete)
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
        return versioned(self._folder, name, self._folder.json(name), FACTS_FORMAT) if there else None

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
        return read_manifest(self._folder, evidence, self._same(evidence))

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
