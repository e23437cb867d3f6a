# SPDX-License-Identifier: GPL-2.0-or-later
"""Bundles made by hand, for the reports: small suites, a host, launches of two vCPUs, sealed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_seves.evidence.bundle import FACTS_FORMAT, LAUNCH_FORMAT
from pytest_seves.report.plan import Plan
from tests.evidence import recording

MILAN = Path(__file__).parents[1] / "host" / "milan.json"
Json = dict[str, Any]

CATALOGUE = """
[[requirement]]
id = "X-1"
level = "must"
sentence = "Every vCPU is measured."
source = "document 1, section 2"

[[requirement]]
id = "X-2"
level = "must"
sentence = "Flags of INIT2 are refused."
source = "document 1, section 3"

[[requirement]]
id = "Y-1"
level = "should"
sentence = "Registers are left alone."
source = "document 1, section 4"
"""
LEVELS = """
[[level]]
name = "ES-Launch"
sentence = "It launches."
requirements = ["X-1", "Y-1"]
vcpus = [1, 2]
policies = [5]

[[level]]
name = "ES-Full"
sentence = "Everything."
includes = "ES-Launch"
every = "must"

[[reason]]
why = "KVM_CAP_VM_TYPES has no SEV-ES VM"
fact = "kernel-without-init2"

[[reason]]
why = "this VMM has no KVM_SEV_INIT2"
fact = "vmm-without-init2"
"""
NO_INIT2 = "lab1: this kernel has no KVM_SEV_INIT2: KVM_CAP_VM_TYPES has no SEV-ES VM"
TESTS = {
    "suites/x/test_x.py::test_one[1vcpu-ES+NODBG]": "X-1",
    "suites/x/test_x.py::test_one[2vcpu-ES+NODBG]": "X-1",
    "suites/x/test_x.py::test_two[es_init]": "X-2",
    "suites/x/test_x.py::test_two[init2]": "X-2",
    "suites/x/test_x.py::test_three": "Y-1",
}


def about(**changes: Any) -> Json:
    """The bundle.json of a whole run on a machine, but for its seal."""
    told = {"model": None, "description": "a board on a desk", "facts": "lab1/facts.json"}
    return {
        "format": "pytest-seves-bundle",
        "version": 1,
        "suite": {"name": "pytest-seves", "version": "0.1"},
        "run": "20261124-1",
        "started": "2026-11-24T10:00:00+00:00",
        "ended": "2026-11-24T10:05:00+00:00",
        "exit_status": 0,
        "arguments": ["--sev-host", "lab1"],
        "python": "3.11.7",
        "plugins": {"pytest-xdist": "3.8"},
        "defects": [],
        "hosts": {"lab1": told},
        "vcpus": [1, 2],
        "policies": [5],
        "launches": 2,
        "requests": 4,
        "blocked": {},
        **changes,
    }


def facts(**changes: Any) -> Json:
    """The facts file of the machine: EPYC 7003, kernel 6.1."""
    raw = {**json.loads(MILAN.read_text()), **changes}
    return {
        "format": FACTS_FORMAT,
        "version": 1,
        "raw": raw,
        "now_ns": raw["time_ns"],
        "lab": {},
        "readiness": [],
    }


def results(host: str = "lab1") -> list[Json]:
    """What a whole run on it came to: everything passed, one case does not apply."""
    one, two, three, four, five = TESTS
    return [
        result(one, "X-1", host=host, launch=0, parameters=guest(1)),
        result(two, "X-1", host=host, launch=1, parameters=guest(2)),
        result(three, "X-2", host=host, launch=0),
        result(four, "X-2", "skipped", NO_INIT2, host=host),
        result(five, "Y-1", host=host, launch=1),
    ]


def guest(vcpus: int, init_path: str | None = None) -> Json:
    """Parameters of a test."""
    return {"vcpus": vcpus, "policy": 5, "init_path": init_path}


def result(
    test: str,
    requirement: str | None,
    outcome: str = "passed",
    why: str = "",
    *,
    host: str = "lab1",
    launch: int | None = None,
    parameters: Json | None = None,
    rig: bool = False,
) -> Json:
    """One line of results.jsonl; its evidence is put in by :func:`write`."""
    return {
        "test": test,
        "host": host,
        "requirement": requirement,
        "outcome": outcome,
        "why": why,
        "rig": rig,
        "parameters": parameters or {},
        "started": "2026-11-24T10:00:01+00:00",
        "duration_s": 0.25,
        "evidence": [] if launch is None else [launch],
    }


def plan(tests: dict[str, str] | None = None, more: dict[str, str] | None = None) -> str:
    """The suite.json of the suites.

    :param more: contents of further files of theirs, or of others in their place.
    """
    known = dict(TESTS) if tests is None else tests
    files = {"suites/x/test_x.py": "0" * 64}
    texts = {"requirements.toml": CATALOGUE, "levels.toml": LEVELS, **(more or {})}
    files |= {f"suites/{name}": _sha256(text.encode()) for name, text in texts.items()}
    return Plan(known, "", files, "1" * 64, {"pytest-xdist": "3.8"}, {}).to_json()


def write(
    root: Path,
    *,
    run: Json | None = None,
    lines: Iterable[Json] | None = None,
    files: dict[str, str | bytes | None] | None = None,
    launches: int = 2,
    sealed: bool = True,
    timeline: bytes | None = None,
    made_wrong: str = "",
) -> Path:
    """A bundle.

    :param timeline: of each launch.
    :param made_wrong: a defect of each launch.
    :param files: further files, or others in the place of those there are; None leaves one out.
    """
    told = about() if run is None else run
    written: dict[str, bytes] = {}
    for name in told["hosts"]:
        written[f"{name}/facts.json"] = _json(facts())
        for number in range(launches):
            recorded = timeline or recording.jsonl(recording.launch(2))
            written.update(launch(name, number, recorded, made_wrong))
    own = [dict(line) for line in (results() if lines is None else lines)]
    for line in own:
        line["evidence"] = [_evidence(number, line["host"], written) for number in line["evidence"]]
    defaults = {"requirements.toml": CATALOGUE, "levels.toml": LEVELS, "suite.json": plan()}
    defaults["results.jsonl"] = "".join(json.dumps(line) + "\n" for line in own)
    for name, content in {**defaults, **(files or {})}.items():
        if content is not None:
            written[name] = content.encode() if isinstance(content, str) else content
        else:
            written.pop(name, None)
    for name, content in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    seal = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    (root / "bundle.json").write_bytes(_json({**told, "sealed": seal if sealed else None}))
    return root


def launch(host: str, number: int, timeline: bytes, made_wrong: str = "") -> dict[str, bytes]:
    """The files of a launch of 2 vCPUs, by name."""
    folder = f"{host}/launches/{number + 1:03}-2vcpu-ES+NODBG"
    manifest = {
        "format": LAUNCH_FORMAT,
        "version": 1,
        "kind": "launch",
        "host": host,
        "spec": {"vcpus": 2, "policy": 5, "faults": []},
        "argv": ["qemu-system-x86_64", "-machine", "q35"],
        "environment": {"defects": [made_wrong] if made_wrong else []},
        "exit": {"status": 0, "signal": None},
        "phase": "",
        "outputs": {},
        "number": number,
        "files": {"timeline.jsonl": {"sha256": _sha256(timeline), "size": len(timeline), "derived": False}},
    }
    return {f"{folder}/timeline.jsonl": timeline, f"{folder}/launch.json": _json(manifest)}


def _evidence(number: int, host: str, written: dict[str, bytes]) -> Json:
    folder = f"{host}/launches/{number + 1:03}-2vcpu-ES+NODBG"
    return {"kind": "launch", "path": folder, "id": _sha256(written[f"{folder}/launch.json"]), "request": {}}


def _json(value: Json) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
