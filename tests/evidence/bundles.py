# SPDX-License-Identifier: GPL-2.0-or-later
"""A bundle written by hand, with one launch: what a small run would leave."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from pytest_seves.evidence.launch import Exit, Launch, Output
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.evidence.timeline import Timeline
from pytest_seves.guest.archive import Archive
from pytest_seves.guest.recorded import spec_record
from pytest_seves.guest.spec import GuestSpec
from tests.evidence import recording

ABOUT: dict[str, Any] = {
    "format": "pytest-seves-bundle",
    "version": 1,
    "suite": {"name": "pytest-seves", "version": "0.1.0"},
    "run": "0123abcd",
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T03:05:05+00:00",
    "exit_status": 0,
    "arguments": ["suites"],
    "python": "3.11.2",
    "plugins": {"pytest": "9.0"},
    "defects": [],
    "hosts": {"lab1": {"model": None, "description": "a machine of the lab", "facts": "lab1/facts.json"}},
    "vcpus": [2],
    "policies": [5],
    "launches": 1,
    "requests": 1,
    "blocked": {},
    "sealed": None,
}
MORE: dict[str, Any] = {
    "started": ABOUT["started"],
    "ended": ABOUT["ended"],
    "environment": {
        "vmm": {"name": "qemu", "path": "/usr/bin/qemu", "version": "QEMU 10", "sha256": None},
        "firmware": {"path": None, "sha256": None},
        "kernel": "6.1",
        "microcode": None,
        "files": {},
        "defects": [],
    },
    "measurement": None,
}
TEST = "suites/vmsa/test_vmsa.py::test_it[2vcpu-ES]"


def launch(**given: Any) -> Launch:
    """A launch of two vCPUs that came to its end."""
    raw = recording.jsonl(recording.launch())
    made: dict[str, Any] = {
        "host": "lab1",
        "argv": ("qemu", "-smp", "2"),
        "timeline": Timeline.from_jsonl(raw),
        "recording_z": zlib.compress(raw),
        "qmp": QmpTranscript(None, (), ()),
        "console": Output(b"hello\n", b"", 0),
        "stdout": Output(b"", b"", 0),
        "stderr": Output(b"", b"", 0),
        "exit": Exit(0, None),
        **given,
    }
    return Launch(**made)


def write(
    root: Path, launched: Launch | None = None, *, sealed: bool = True, outcome: str = "passed"
) -> Path:
    """A bundle of one test that judged one launch; returns the launch's folder."""
    spec = GuestSpec(vcpus=2)
    record = Archive(root, "lab1").launch(launched or launch(), spec, spec_record(spec), "launch", MORE)
    line = {
        "test": TEST,
        "host": "lab1",
        "requirement": "VMSA-1",
        "outcome": outcome,
        "why": "" if outcome == "passed" else "assert 1 == 2",
        "rig": False,
        "parameters": {"vcpus": 2, "policy": 5},
        "started": ABOUT["started"],
        "duration_s": 0.5,
        "evidence": [record],
    }
    (root / "results.jsonl").write_text(json.dumps(line) + "\n")
    seal(root, sealed=sealed)
    return root / str(record["path"])


def seal(root: Path, *, sealed: bool = True, more: dict[str, str] | None = None, **changed: Any) -> None:
    """Write bundle.json, with the SHA-256 of what is there now, and `more` of them."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and file.name != "bundle.json"]
    names = {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    about = {**ABOUT, "sealed": {**names, **(more or {})} if sealed else None, **changed}
    if not sealed:
        about.update(ended=None, exit_status=None)
    (root / "bundle.json").write_text(json.dumps(about))
