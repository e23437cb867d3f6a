# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader of bundles: what it gives back, and what it refuses, by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence import folder
from pytest_seves.evidence.bundle import Bundle, read_about
from pytest_seves.evidence.launch import Output
from tests.evidence import bundles

Damage = Callable[[Path, Path], None]


def opened(root: Path) -> Bundle:
    """A bundle of which everything was taken out once."""
    bundle = Bundle.open(root)
    for manifest in bundle.manifests:
        bundle.launch(manifest)
    return bundle


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """The run, its result and its launch come back."""
    place = bundles.write(tmp_path)
    bundle = opened(tmp_path)
    (result,), (manifest,) = bundle.results, bundle.manifests
    assert (bundle.about.complete, bundle.notes, bundle.about.vcpus) == (True, (), (2,))
    assert (result.test, result.outcome, result.parameters["policy"]) == (bundles.TEST, "passed", 5)
    assert (manifest.spec["vcpus"], manifest.argv) == (2, ("qemu", "-smp", "2"))
    launch = bundle.launch(manifest)
    assert launch.timeline == bundles.launch().timeline
    assert (launch.console.text, launch.folder) == ("hello\n", str(place))
    assert bundle.launch(manifest) is launch
    assert bundle.content(manifest, "console.txt") == b"hello\n"


def test_what_people_look_at_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    """Escape sequences, NUL and invalid UTF-8 are shown; the raw bytes stay as they were."""
    said = b"\x1b]0;owned\x07 \x00 \xff \xe2\x80\xae</script>\r\n"
    place = bundles.write(tmp_path, bundles.launch(console=Output(said, b"", 0)))
    shown = (place / "console.txt").read_text()
    assert shown == r"\x1b]0;owned\x07 \x00 \xff \u202e</script>\r" + "\n"
    assert opened(tmp_path).launch(opened(tmp_path).manifests[0]).console.head == said


def flip(file: Path, at: int = 10) -> None:
    """Edit one byte."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def link(file: Path) -> None:
    """Put a link in the place of a file, to the same content elsewhere."""
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


def pipe(file: Path) -> None:
    """Put a named pipe there: a reader that opens it waits for ever."""
    file.unlink()
    os.mkfifo(file)


DAMAGED: dict[str, tuple[Damage, str]] = {
    "results-edited": (lambda root, _: flip(root / "results.jsonl"), "results.jsonl.*"),
    "results-cut": (
        lambda root, _: os.truncate(root / "results.jsonl", 100),
        "results.jsonl:1: the line is cut",
    ),
    "results-missing": (lambda root, _: (root / "results.jsonl").unlink(), "results.jsonl: cannot be read"),
    "manifest-edited": (lambda _, place: flip(place / "launch.json"), "launch.json: .*it was changed"),
    "manifest-missing": (lambda _, place: (place / "launch.json").unlink(), "launch.json: cannot be read"),
    "timeline-edited": (lambda _, place: flip(place / "timeline.jsonl"), "timeline.jsonl: it was changed"),
    "timeline-cut": (
        lambda _, place: os.truncate(place / "timeline.jsonl", 50),
        "timeline.jsonl: it was changed",
    ),
    "console-missing": (lambda _, place: (place / "console.raw").unlink(), "console.raw: cannot be read"),
    "console-linked": (lambda _, place: link(place / "console.raw"), "console.raw: cannot be read: a link"),
    "folder-linked": (lambda _, place: link(place), "console.raw: cannot be read: a link"),
    "pipe": (lambda _, place: pipe(place / "qmp.json"), "qmp.json: wanted a regular file"),
    "derived-edited": (lambda _, place: flip(place / "timeline.txt"), "timeline.txt: it was changed"),
    "about-cut": (lambda root, _: os.truncate(root / "bundle.json", 30), "bundle.json: wanted a JSON object"),
    "about-missing": (lambda root, _: (root / "bundle.json").unlink(), "bundle.json: there is none"),
    "about-linked": (lambda root, _: link(root / "bundle.json"), "bundle.json: cannot be read: a link"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    """The error names the file and what was wanted, before anything was given out."""
    place = bundles.write(tmp_path / "bundle")
    act, wanted = DAMAGED[damage]
    act(tmp_path / "bundle", place)
    with pytest.raises(EvidenceError, match=wanted):
        Bundle.open(tmp_path / "bundle")


def resealed(root: Path, line: bytes) -> None:
    """Put a line into results.jsonl, as somebody would who can compute SHA-256."""
    (root / "results.jsonl").write_bytes(line + b"\n")
    bundles.seal(root)


def changed(root: Path, **values: Any) -> bytes:
    """The result's line with other values."""
    line = json.loads((root / "results.jsonl").read_text())
    return json.dumps({**line, **values}).encode()


def pointing(root: Path, path: str) -> bytes:
    """The result's line with evidence elsewhere."""
    line = json.loads((root / "results.jsonl").read_text())
    evidence = {**line["evidence"][0], "path": path}
    return changed(root, evidence=[evidence])


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "nul": (lambda root: b"\0" * 100, "results.jsonl:1: wanted a JSON object"),
    "no-utf-8": (lambda root: b'{"test": "\xff"}', "results.jsonl:1: wanted a JSON object: .*utf-8"),
    "list": (lambda root: b"[]", "results.jsonl:1: wanted a JSON object"),
    "nested": (lambda root: b"[" * 100_000, "results.jsonl:1: wanted a JSON object"),
    "key-missing": (lambda root: b"{}", "results.jsonl:1: test is missing"),
    "wrong-type": (lambda root: changed(root, evidence={}), "results.jsonl:1: evidence: wanted list"),
    "outcome": (lambda root: changed(root, outcome="fine"), "outcome: wanted one of passed, .*got 'fine'"),
    "host": (lambda root: changed(root, host="lab2"), "host: 'lab2' is not among those of bundle.json"),
    "dots": (lambda root: pointing(root, "lab1/../../etc"), "wanted a name of a file below this directory"),
    "absolute": (lambda root: pointing(root, "/etc"), "wanted a name of a file below this directory"),
    "nul-in-path": (lambda root: pointing(root, "a\0b"), "wanted a name of a file below this directory"),
    "nowhere": (lambda root: pointing(root, "lab1/launches/none"), "none/launch.json: cannot be read"),
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_results_are_refused(tmp_path: Path, trick: str) -> None:
    """What was sealed by somebody else is not trusted either."""
    bundles.write(tmp_path)
    make, wanted = HOSTILE[trick]
    resealed(tmp_path, make(tmp_path))
    with pytest.raises(EvidenceError, match=wanted):
        Bundle.open(tmp_path)


def test_a_manifest_names_only_files_beside_it(tmp_path: Path) -> None:
    """A manifest of somebody who computes every SHA-256 anew leads nowhere else."""
    place = bundles.write(tmp_path)
    manifest = json.loads((place / "launch.json").read_text())
    manifest["files"]["../../../etc/passwd"] = {"sha256": "0" * 64, "size": 1, "derived": False}
    content = json.dumps(manifest).encode()
    (place / "launch.json").write_bytes(content)
    line = json.loads((tmp_path / "results.jsonl").read_text())
    line["evidence"][0]["id"] = folder.Folder.digest(content)
    resealed(tmp_path, json.dumps(line).encode())
    with pytest.raises(
        EvidenceError, match=r"launch.json: files: '../../../etc/passwd': wanted a plain name"
    ):
        Bundle.open(tmp_path)


def test_a_seal_leads_nowhere_else(tmp_path: Path) -> None:
    """A name in it is a name of a file below the directory."""
    bundles.write(tmp_path / "bundle")
    bundles.seal(tmp_path / "bundle", more={"../secret": "0" * 64})
    with pytest.raises(EvidenceError, match=r"'../secret': wanted a name"):
        Bundle.open(tmp_path / "bundle")


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of 1 GiB (a hole, here) is refused after the first bytes of it."""
    bundles.write(tmp_path, sealed=False)
    os.truncate(tmp_path / "results.jsonl", 1 << 30)
    with pytest.raises(EvidenceError, match=r"results.jsonl:2: wanted a line of at most \d+ bytes"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["bundle.json", "launch.json"])
def test_a_huge_file_is_not_read(tmp_path: Path, name: str) -> None:
    """JSON of 2 GiB is refused by its size."""
    place = bundles.write(tmp_path)
    os.truncate(tmp_path / name if name == "bundle.json" else place / name, 2 << 30)
    with pytest.raises(EvidenceError, match=rf"{name}: wanted at most \d+ bytes, got \d+"):
        Bundle.open(tmp_path, check=False)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"version": 2}, r"version 2 was written by pytest-seves 0.1.0; .*reads version 1: install a newer"),
        ({"version": "1"}, "wanted version 1, got '1'"),
        ({"format": "other"}, "wanted format 'pytest-seves-bundle', got 'other'"),
        ({"hosts": {"lab1": {}}}, "bundle.json: hosts: KeyError: 'model'"),
        ({"vcpus": "1,2"}, "bundle.json: vcpus: wanted list, got '1,2'"),
        ({"hosts": {"../x\x1b[2J": {}}}, r"bundle.json: hosts: '../x\\x1b\[2J' is no name of a host"),
        ({"blocked": {"lab1": "why"}}, "bundle.json: blocked: wanted objects with why, got 'why'"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, values: dict[str, Any], wanted: str) -> None:
    """A newer version says by whom it was written and what to do."""
    bundles.write(tmp_path)
    bundles.seal(tmp_path, **values)
    with pytest.raises(EvidenceError, match=wanted):
        read_about(tmp_path)


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """So is what is no directory."""
    with pytest.raises(EvidenceError, match=r"bundle.json: there is none, so .* is no bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(EvidenceError, match="wanted the directory that --sev-artifacts left"):
        Bundle.open(tmp_path / "missing")


def test_a_killed_run_is_readable_and_says_so(tmp_path: Path) -> None:
    """Without a seal the last line may be cut; what is before it counts."""
    bundles.write(tmp_path, sealed=False)
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"test": "suites/vm')
    bundle = opened(tmp_path)
    assert [result.test for result in bundle.results] == [bundles.TEST]
    assert ["incomplete" in bundle.notes[0], bundle.notes[1].endswith("results.jsonl:2: cut, and left out")]
    assert not bundle.about.complete


def test_an_unsealed_launch_is_checked_by_its_manifest(tmp_path: Path) -> None:
    """A killed run's launches are whole, and an edited one is found."""
    place = bundles.write(tmp_path, sealed=False)
    flip(place / "timeline.jsonl")
    with pytest.raises(EvidenceError, match=r"timeline.jsonl: it was changed"):
        Bundle.open(tmp_path)


def test_a_later_file_is_not_part_of_a_sealed_bundle(tmp_path: Path) -> None:
    """What was not sealed is not read."""
    bundles.write(tmp_path)
    (tmp_path / "late.txt").write_text("late")
    with pytest.raises(EvidenceError, match=r"late.txt: it is not among the files that were sealed"):
        Bundle.open(tmp_path).read("late.txt")
