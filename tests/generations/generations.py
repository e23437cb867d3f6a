# SPDX-License-Identifier: GPL-2.0-or-later
"""The suites on the model with two generations of QEMU and every modelled kernel: ``tox run -e generations``.

Named so that ``pytest tests`` leaves it out: it downloads a QEMU once, and takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.profiles import NAMES as PROFILES
from pytest_seves.model.profiles import resolve
from pytest_seves.report.catalogue import KERNEL, KNOWN_DEFECTS, Version, load_known_defects
from tests.generations import fetch

_LIMIT_S = 600.0
_CLEAN = {"passed", "known defect", "skipped"}


@dataclass(frozen=True)
class Vmm:
    """A QEMU of this machine."""

    binary: Path
    version: Version

    @property
    def name(self) -> str:
        """``qemu-10.0.2``."""
        return "qemu-" + ".".join(map(str, self.version))


@dataclass(frozen=True)
class Run:
    """What one run of the suites said.

    :param kernel: the release that was modelled.
    :param verdicts: of each requirement: verdict, counts of outcomes, and the first test that did not pass.
    """

    kernel: Version
    status: int
    output: str = field(repr=False)
    verdicts: dict[str, dict[str, Any]] = field(repr=False)

    def requirements(self, outcome: str) -> set[str]:
        """Requirements of which at least one test ended so."""
        return {name for name, entry in self.verdicts.items() if entry["counts"].get(outcome)}


def _vmm(binary: Path) -> Vmm:
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"version (\d+(?:\.\d+)+)", done.stdout)
    assert found, done.stdout
    return Vmm(binary, tuple(map(int, found[1].split("."))))


def _distribution() -> Vmm:
    """The system's own QEMU, or a skip."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        pytest.skip("no qemu-system-x86_64 in PATH")
    return _vmm(Path(path))


def _backports() -> Vmm:
    """The QEMU of the distribution's backports, or a skip that says why there is none."""
    try:
        return _vmm(fetch.fetch(fetch.cache_directory()))
    except fetch.UnavailableError as error:
        pytest.skip(f"no second QEMU: {error}")


@pytest.fixture(scope="session", params=[_distribution, _backports], ids=["distribution", "backports"])
def vmm(request: pytest.FixtureRequest) -> Vmm:
    """One QEMU after the other."""
    chosen: Vmm = request.param()
    return chosen


@pytest.fixture(scope="session", params=sorted(PROFILES))
def run(
    request: pytest.FixtureRequest, vmm: Vmm, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The suites, once, on a modelled kernel with that QEMU."""
    host = f"{vmm.name}-{request.param}"
    folder = tmp_path_factory.mktemp(host)
    text = f'[host]\nmodel = "{request.param}"\n\n[vmm]\nbinary = {json.dumps(str(vmm.binary))}\n'
    (folder / f"{host}.toml").write_text(text)
    options = [
        *("--sev-host", host, f"--sev-lab={folder}", f"--sev-artifacts={folder / 'artifacts'}"),
        *("-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "-q", "-rs", "--tb=line"),
    ]
    # The caller's pytest and xdist speak through such variables, and so would this one believe to be theirs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", *options],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_LIMIT_S,
        check=False,
    )
    file = folder / "artifacts/verdicts.json"
    verdicts = json.loads(file.read_text())[host]["requirements"] if file.is_file() else {}
    found = re.match(r"\d+(?:\.\d+)+", resolve(request.param).release)
    assert found
    kernel = tuple(map(int, found[0].split(".")))
    return Run(kernel, done.returncode, done.stdout, verdicts)


def test_the_generations_differ() -> None:
    """The two QEMUs are two versions, the fetched one being the newer."""
    assert _backports().version > _distribution().version


def test_the_suites_pass(run: Run) -> None:
    """The run ends with status 0: every requirement passed, was skipped, or met a known defect."""
    print(run.output)
    strange = {
        name: entry["verdict"] for name, entry in run.verdicts.items() if entry["verdict"] not in _CLEAN
    }
    assert strange == {}
    assert run.status == pytest.ExitCode.OK
    assert run.requirements("passed")


def test_the_known_defects_are_those_of_the_version(run: Run, vmm: Vmm, project: Path) -> None:
    """Each known defect of this VMM and this kernel was met, its requirement skipped aside, and no other."""
    expected = {
        defect.requirement
        for defect in load_known_defects(project / "suites" / KNOWN_DEFECTS)
        if defect.affects(defect.requirement, defect.test, "qemu", vmm.version)
        or defect.affects(defect.requirement, defect.test, KERNEL, run.kernel)
    }
    skipped = {name for name, entry in run.verdicts.items() if set(entry["counts"]) == {"skipped"}}
    assert run.verdicts
    assert run.requirements("known defect") == expected - skipped


def test_the_defect_of_init2_turns_its_requirement_red(project: Path, tmp_path: Path) -> None:
    """INIT-6 can fail, and nothing else of INIT with it; only a VMM with KVM_SEV_INIT2 can show it."""
    text = f'[host]\nmodel = "linux-7.2"\n\n[vmm]\nbinary = {json.dumps(str(_backports().binary))}\n'
    (tmp_path / "newest.toml").write_text(text)
    options = ("--sev-host", "newest", f"--sev-lab={tmp_path}", f"--sev-artifacts={tmp_path / 'artifacts'}")
    command = (sys.executable, "-m", "pytest", "suites/init", "-q", "-p", "no:cacheprovider", *options)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    chosen = ("--sev-vcpus", "3", "--sev-policy", "0x5", "--sev-defect", "init2-flags")
    subprocess.run([*command, *chosen], cwd=project, env=environment, check=False, timeout=_LIMIT_S)
    verdicts = json.loads((tmp_path / "artifacts/verdicts.json").read_text())["newest"]["requirements"]
    assert {name for name, entry in verdicts.items() if entry["verdict"] == "failed"} == {"INIT-6"}
