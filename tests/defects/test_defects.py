# SPDX-License-Identifier: GPL-2.0-or-later
"""Every check has been seen to fail: each defect turns its requirements red, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
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
    "more_vcpus",
]
#: A test that takes as long as all others here, spared where it cannot turn red.
LONG, LONG_BREAKS = "thousand", {"REGISTERS-4"}
SPARED.append(LONG)
#: Of the tests with a guest that runs, which wait long for one that does not, one stands for all.
RUNNING = "(not test_running or (comes_online and not without_es))"
#: Where a stopped guest cannot be continued, each that is started paused waits in vain: these stand for all.
LONG_SUITES = ("suites/registers", "suites/irqchip", "suites/smm")
FEW = " and ".join(f"not {part}" for part in SPARED)
#: Broken in this machine's VMM already, which the catalogue knows: no defect can turn these red. For VMSA-6,
#: tests/evidence/test_timeline.py shows both outcomes.
EXPECTED_FAILURES = ("known defect",)

#: Requirements of guests that boot to their firmware's shell, which takes long: test_firmware.py has them.
FIRMWARE = {"AP-BOOT-10", "LIFECYCLE-9"}
KERNEL_DEFECTS = [name for name, defect in DEFECTS.items() if defect.kernel and not defect.breaks <= FIRMWARE]
#: A guest that waits in vain for an AP, for as long as each test lets it, meets nothing else that is wrong.
HIDES_OTHERS = "ap-lost"
#: Requirements of KVM_SEV_INIT2 alone: this machine's VMM may not know it. tests/generations judges them.
INIT2_ALONE = {"INIT-6"}
#: Requirements of guests with a kernel, which the model does not boot in time: test_linux.py has them.
LINUX = {"BOOT-1", "BOOT-2", "BOOT-3", "BOOT-4", "BOOT-5"}
VMM_DEFECTS = [
    name
    for name, defect in DEFECTS.items()
    if not (defect.kernel or defect.breaks <= INIT2_ALONE or defect.breaks <= LINUX)
]
#: Tests in which KVM is called without a VMM; no defect of a VMM can reach them.
DIRECT = ["suites/kvm", "suites/registers/test_direct.py"]
CALLS = [*DIRECT, "suites/smm/test_smm.py::test_smi_is_refused"]
NOT_DIRECT = [f"--ignore={path}" for path in DIRECT]
#: Of direct calls, one order of closing descriptors is enough.
FEW_DIRECT = ("-k", f"{FEW} and not (closing and not sev-vm-vcpu-kvm)")
#: The kernel that a kernel defect makes wrong: it has both init paths, and KVM_SMI as it should be.
KERNEL = "linux-7.2"


@pytest.fixture
def newest(tmp_path: Path) -> str:
    """The option that makes the model one of :data:`KERNEL`."""
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "model.toml").write_text(f'[host]\nmodel = "{KERNEL}"\n')
    return f"--sev-lab={lab}"


def verdicts(
    project: Path, folder: Path, *options: str, suites: Sequence[str] = ("suites",)
) -> dict[str, str]:
    """Verdict by requirement of a small run of the suites on the model."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *suites,
        "--sev-host",
        "model",
        f"--sev-artifacts={folder}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-q", "-k", f"{FEW} and {RUNNING}", "-p", "no:cacheprovider", *options],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    written = folder / "verdicts.json"
    assert written.exists(), f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    entries = json.loads(written.read_text())["model"]["requirements"]
    broken = {name: entry["first"] for name, entry in entries.items() if entry["verdict"] == "error"}
    assert broken == {}, done.stdout[-8000:]
    return {name: entry["verdict"] for name, entry in entries.items()}


def test_without_a_defect_nothing_is_red(project: Path, tmp_path: Path) -> None:
    """The control: a right VMM turns nothing red."""
    seen = verdicts(project, tmp_path, *NOT_DIRECT)
    assert set(seen.values()) <= {"passed", "skipped", *EXPECTED_FAILURES}
    assert {name for name, verdict in seen.items() if verdict == "skipped"} <= {*INIT2_ALONE, "SMM-6"}


@pytest.mark.parametrize("name", VMM_DEFECTS)
def test_a_defect_turns_its_requirements_red(project: Path, tmp_path: Path, name: str) -> None:
    """A defect fails exactly the requirements that it says it breaks; the others pass or stay undecided."""
    few, suites = f"{FEW} and {RUNNING}", ["suites"]
    if LONG_BREAKS & DEFECTS[name].breaks:
        few, suites = f"({few}) or {LONG}", [*LONG_SUITES]
    seen = verdicts(project, tmp_path, "--sev-defect", name, *NOT_DIRECT, "-k", few, suites=suites)
    red = {requirement for requirement, verdict in seen.items() if verdict == "failed"}
    known = {requirement for requirement, verdict in seen.items() if verdict in EXPECTED_FAILURES}
    breaks = DEFECTS[name].breaks - LINUX - FIRMWARE
    assert red | (known & breaks) == breaks
    assert set(seen.values()) <= {"passed", "failed", "undecided", "skipped", *EXPECTED_FAILURES}


def test_without_a_kernel_defect_nothing_is_red(project: Path, tmp_path: Path, newest: str) -> None:
    """The control: every direct call is decided and right on that kernel."""
    seen = verdicts(project, tmp_path, newest, *FEW_DIRECT, suites=CALLS)
    assert set(seen.values()) == {"passed"}


@pytest.mark.parametrize("name", KERNEL_DEFECTS)
def test_a_kernel_defect_turns_its_requirements_red(
    project: Path, tmp_path: Path, newest: str, name: str
) -> None:
    """A defect of the kernel fails exactly what it says it breaks, of direct calls and of its families."""
    families = {broken.rpartition("-")[0].lower().replace("-", "_") for broken in DEFECTS[name].breaks}
    suites = [*CALLS, *(f"suites/{family}" for family in sorted(families))]
    seen = verdicts(project, tmp_path, newest, *FEW_DIRECT, "--sev-defect", name, suites=suites)
    red = {requirement for requirement, verdict in seen.items() if verdict == "failed"}
    assert red == DEFECTS[name].breaks
    assert set(seen.values()) <= {"passed", "failed", "undecided", *EXPECTED_FAILURES}


def test_kernel_defects_leave_the_vmm_alone(project: Path, tmp_path: Path, newest: str) -> None:
    """All of them at once turn no other requirement red that is seen through a VMM."""
    named = [option for name in KERNEL_DEFECTS if name != HIDES_OTHERS for option in ("--sev-defect", name)]
    seen = verdicts(project, tmp_path, newest, *named, *NOT_DIRECT)
    red = {requirement for requirement, verdict in seen.items() if verdict == "failed"}
    assert red <= {broken for name in KERNEL_DEFECTS for broken in DEFECTS[name].breaks}
    assert len(seen) > len(red)
