# SPDX-License-Identifier: GPL-2.0-or-later
"""The suites that call KVM directly, on every modelled kernel: each passes, and skips only what it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.profiles import NAMES, resolve
from pytest_seves.spec import kvm

DIRECT = ("suites/kvm", "suites/registers/test_direct.py", "suites/smm/test_smm.py::test_smi_is_refused")
#: Nothing of these is left where the kernel has no KVM_SEV_INIT2.
NEED_INIT2 = {"KVM-2", "KVM-15", "KVM-16", "KVM-17", "KVM-20"}


@pytest.fixture(scope="module", params=sorted(NAMES))
def kernel(request: pytest.FixtureRequest) -> str:
    """Each profile."""
    return str(request.param)


@pytest.fixture(scope="module")
def verdicts(kernel: str, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Verdict and counts by requirement of one run on it, whose exit status was 0."""
    folder = tmp_path_factory.mktemp(kernel)
    (folder / "model.toml").write_text(f'[host]\nmodel = "{kernel}"\n')
    command = [sys.executable, "-m", "pytest", *DIRECT, "--sev-host", "model", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--sev-lab={folder}", f"--sev-artifacts={folder / 'artifacts'}"],
        cwd=project,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads((folder / "artifacts/verdicts.json").read_text())["model"]
    found: dict[str, Any] = told["requirements"]
    return found


def counted(verdicts: dict[str, Any], outcome: str) -> set[str]:
    """Requirements of which a test ended so."""
    return {name for name, entry in verdicts.items() if entry["counts"].get(outcome)}


def test_what_a_kernel_can_do_is_decided(kernel: str, verdicts: dict[str, Any]) -> None:
    """Every requirement has a test that passed or met a known defect, but for a missing init path."""
    init2 = resolve(kernel).capability(kvm.KVM_CAP_VM_TYPES) >> kvm.KVM_X86_SEV_ES_VM & 1
    decided = counted(verdicts, "passed") | counted(verdicts, "known defect")
    assert set(verdicts) - decided == (set() if init2 else NEED_INIT2)
    assert bool(counted(verdicts, "skipped")) is not bool(init2)


def test_kvm_smi_is_a_known_defect_of_older_kernels(kernel: str, verdicts: dict[str, Any]) -> None:
    """Where the kernel takes it, the catalogue knows."""
    assert counted(verdicts, "known defect") == ({"SMM-6"} if resolve(kernel).smi_on_es else set())
