# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes evidence of one host into the bundle: launches, programs of calls, what tests made for guests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import CALLS_FORMAT, LAUNCH_FORMAT, MANIFEST, VERSION
from pytest_seves.evidence.folder import Folder, json_file, write_whole
from pytest_seves.evidence.launch_folder import derived_files, fields, raw_files
from pytest_seves.text import one_line

from .recorded import program_record
from .spec import GuestSpec, policy_name

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch

    from .answers import Answers
    from .calls import Step

#: A piece of evidence as the test's line in results.jsonl has it; all JSON.
Record = dict[str, Any]
_NAME = 80


class Archive:
    """The part of one process: its names carry that of the xdist worker, so that none is taken twice.

    :param root: the bundle.
    :param host: the host's name, and of its directory.
    """

    def __init__(self, root: Path, host: str, worker: str = "") -> None:
        self._root = root
        self._host = host
        self._worker = worker
        self._written = 0

    def launch(
        self, launch: Launch, spec: GuestSpec, record: Mapping[str, Any], kind: str, more: Mapping[str, Any]
    ) -> Record:
        """Write a launch; its folder is there as a whole or not at all.

        :param record: the spec as JSON.
        :param more: further keys of the manifest.
        """
        raw, derived = raw_files(launch), derived_files(launch)
        files = {
            name: {"sha256": Folder.digest(content), "size": len(content), "derived": name in derived}
            for name, content in {**raw, **derived}.items()
        }
        manifest = {
            "format": LAUNCH_FORMAT,
            "version": VERSION,
            "kind": kind,
            "spec": record,
            **fields(launch),
            "mode": launch.timeline.mode,
            **more,
            "files": files,
        }
        content = json_file(manifest)
        place = self._place("launches", [f"{spec.vcpus}vcpu", policy_name(spec.policy), *spec.faults])
        new = place.with_name(f".tmp-{place.name}")
        with writing(place):
            new.mkdir(parents=True)
            for name, part in {**raw, **derived, MANIFEST: content}.items():
                (new / name).write_bytes(part)
            new.rename(place)
        return {
            "kind": kind,
            "path": self._name(place),
            "id": Folder.digest(content),
            "request": dict(record),
        }

    def calls(self, test: str, program: Sequence[Step], answers: Answers) -> Record:
        """Write a program of direct calls with its answers."""
        return self._json_file(
            "calls",
            test,
            {
                "format": CALLS_FORMAT,
                "version": VERSION,
                "test": test,
                "program": program_record(program),
                "answers": answers.raw,
                "transcript": [one_line(line) for line in answers.lines()],
            },
        )

    def made(self, name: str, content: str) -> Record:
        """Write what a test made by chance and gave to its guest."""
        return self._json_file("made", name, {"name": name, "content": content})

    def place(self, named: Record) -> str:
        """Where a piece of evidence is."""
        return str(self._root / named["path"])

    def _json_file(self, kind: str, name: str, record: Mapping[str, Any]) -> Record:
        place = self._place(kind, [name], ".json")
        content = json_file(record)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, content)
        return {"kind": kind, "path": self._name(place), "id": Folder.digest(content)}

    def _place(self, kind: str, words: Sequence[str], suffix: str = "") -> Path:
        self._written += 1
        number = [*filter(None, [self._worker]), f"{self._written:03}"]
        name = re.sub(r"[^\w.=+-]+", "-", "-".join([*number, *words]), flags=re.ASCII)
        return self._root / self._host / kind / (name[:_NAME].strip("-.") + suffix)

    def _name(self, place: Path) -> str:
        return str(place.relative_to(self._root))


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """While a file of the bundle is written.

    :raise EvidenceError: it cannot be, which is no verdict on the product.
    """
    try:
        yield
    except OSError as error:
        raise EvidenceError(f"{place}: evidence cannot be written: {error}") from error


def remove_halves(root: Path) -> None:
    """Remove what a killed worker had begun to write."""
    for new in [*root.glob("*/.tmp-*"), *root.glob("*/*/.tmp-*")]:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink()
