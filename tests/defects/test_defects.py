# SPDX-License-Identifier: GPL-2.0-or-later
"""Every check has been seen to fail: each defect turns its requirements red, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_seves.guest.defects import DEFECTS

#: One vCPU count, one policy and a few firmware images are enough to see a check fail.
SPARED = [
    "1vcpu",
    "2vcpu",
    "8vcpu",
    "16vcpu",
    "64vcpu",
    "NOKS",
    "vcpu-ES]",
    "entry-",
    "overlap-",
    "total-s",
    "total-i",
    "total-b",
    "legacy-",
]
FEW = " and ".join(f"not {part}" for part in SPARED)
#: Broken in this machine's VMM already, which the catalogue knows: no defect can turn these red. For VMSA-6,
#: tests/evidence/test_timeline.py shows both outcomes.
EXPECTED_FAILURES = ("known defect",)


def verdicts(project: Path, folder: Path, *options: str) -> dict[str, str]:
    """Verdict by requirement of a small run of the suites on the model."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "suites",
        "--sev-host",
        "model",
        f"--sev-artifacts={folder}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-q", "-k", FEW, "-p", "no:cacheprovider", *options],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    written = folder / "verdicts.json"
    assert written.exists(), f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return {name: entry["verdict"] for name, entry in json.loads(written.read_text())["model"].items()}


def test_without_a_defect_nothing_is_red(project: Path, tmp_path: Path) -> None:
    """The control: a right VMM turns nothing red."""
    seen = verdicts(project, tmp_path)
    assert set(seen.values()) <= {"passed", *EXPECTED_FAILURES}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_turns_its_requirements_red(project: Path, tmp_path: Path, name: str) -> None:
    """A defect fails exactly the requirements that it says it breaks; the others pass or stay undecided."""
    seen = verdicts(project, tmp_path, "--sev-defect", name)
    red = {requirement for requirement, verdict in seen.items() if verdict == "failed"}
    known = {requirement for requirement, verdict in seen.items() if verdict in EXPECTED_FAILURES}
    assert red | (known & DEFECTS[name].breaks) == DEFECTS[name].breaks
    assert set(seen.values()) <= {"passed", "failed", "undecided", *EXPECTED_FAILURES}
