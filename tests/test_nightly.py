# SPDX-License-Identifier: GPL-2.0-or-later
""".ci/nightly, the workflows and the pages that tell of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = f'#!/bin/sh\nexec {sys.executable} -m pytest "$@"\n'
BROKEN = '[host]\nmodel = "linux-6.1"\n[vmm]\nbinary = "qemu-system-none"\n'


@pytest.fixture
def clone(project: Path, tmp_path: Path) -> Path:
    """A tree that is set up: its ./bootstrap is pytest."""
    for name in (".ci", "lab", "suites", "pytest_seves", "pyproject.toml", "conftest.py"):
        tmp_path.joinpath(name).symlink_to(project / name)
    tmp_path.joinpath(".ci").unlink()
    tmp_path.joinpath(".ci").mkdir()
    tmp_path.joinpath(".ci/nightly").write_bytes((project / ".ci/nightly").read_bytes())
    tmp_path.joinpath("bootstrap").write_text(BOOTSTRAP)
    tmp_path.joinpath("bootstrap").chmod(0o755)
    return tmp_path


def nightly(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One night, with few tests."""
    argv = ["bash", str(clone / ".ci/nightly"), *arguments]
    environment = {**os.environ, "SEVES_RESULTS": "out", "SEVES_VENV": sys.prefix, **environment}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_green_night(clone: Path) -> None:
    """Everything that a CI collects is there, and nothing of an earlier night."""
    old = clone / "out/evidence/old"
    old.mkdir(parents=True)
    result = nightly(clone, "model", "--", "-k", "test_smm_on")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not old.exists()
    verdicts = json.loads((clone / "out/evidence/verdicts.json").read_text())["model"]
    assert verdicts["requirements"]["SMM-5"]["verdict"] == "passed"
    assert verdicts["blocked"] is None
    assert "passed" in (clone / "out/evidence/summary.md").read_text()
    assert json.loads((clone / "out/evidence/model/readiness.json").read_text())["ready"] is True
    assert "<testsuites" in (clone / "out/junit.xml").read_text()


def test_a_red_night(clone: Path) -> None:
    """A wrong product is status 1, and the results are there all the same."""
    result = nightly(clone, "model", "--", "-k", "test_smm_on", "--sev-defect=smm-offered")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "**failed**" in (clone / "out/evidence/summary.md").read_text()
    assert "<failure" in (clone / "out/junit.xml").read_text()


def test_the_nights_before(clone: Path) -> None:
    """Two nights are kept, the page has both, and a red night is red all the same."""
    kept = []
    for more, status in ((), 0), ((), 0), (("--sev-defect=smm-offered",), 1):
        arguments = ("model", "--", "-k", "test_smm_on", *more)
        result = nightly(clone, *arguments, SEVES_HISTORY=str(clone / "history"), SEVES_NIGHTS="2")
        assert result.returncode == status, result.stdout + result.stderr
        kept.append(sorted(path.name for path in clone.joinpath("history").glob("*Z")))
    first, second, third = kept
    assert (len(second), second[:1], third[:1]) == (2, first, second[1:])
    assert "smm-offered" in (clone / "out/trend.html").read_text()
    asked = json.loads((clone / "history/cache/v/sev/asked").read_text())
    assert sorted(asked) == ["model", "model smm-offered"]


def test_a_blocked_night(clone: Path) -> None:
    """A host that is not ready is status 3: nothing was launched, and nothing of an earlier night is left."""
    old = clone / "out/junit.xml"
    old.parent.mkdir()
    old.write_text("old")
    clone.joinpath("mine").mkdir()
    clone.joinpath("mine/model.toml").write_text(BROKEN)
    result = nightly(clone, "model", "--", "--sev-lab=mine")
    assert result.returncode == 69, result.stdout + result.stderr
    assert "qemu-system-none" in result.stdout
    assert "blocked: this machine or a host is not ready" in result.stderr
    assert not old.exists()


@pytest.mark.parametrize("arguments", [(), ("--", "-x"), ("lab9",)])
def test_a_wrong_call(clone: Path, arguments: tuple[str, ...]) -> None:
    """No host, or one that is not in the lab, is pytest's status for wrong usage."""
    assert nightly(clone, *arguments).returncode == pytest.ExitCode.USAGE_ERROR


def texts(project: Path) -> list[Path]:
    """What tells people, or machines, which commands to run."""
    return [
        *project.glob("docs/*.md"),
        *project.glob(".github/workflows/*.yml"),
        project / ".ci/nightly",
        project / "README.md",
    ]


def test_every_option_exists(project: Path) -> None:
    """No page and no workflow names an option that pytest does not have."""
    argv = [sys.executable, "-m", "pytest", "--help"]
    known = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=60, check=True).stdout
    named = {word for path in texts(project) for word in re.findall(r"--sev-[a-z-]+", path.read_text())}
    assert {word for word in named if word not in known} == set()


def test_every_path_exists(project: Path) -> None:
    """Links of the pages into the project lead somewhere, and so do the directories of their commands."""
    missing = [
        f"{page.name}: {target}"
        for page in project.glob("docs/*.md")
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    missing += [
        f"{path.name}: {target}"
        for path in texts(project)
        for target in re.findall(r"(?<![\w/.-])((?:suites|\.ci)/\w+)", path.read_text())
        if not (project / target).exists() and not (project / f"{target}.toml").exists()
    ]
    assert missing == []


def test_actions_are_pinned(project: Path) -> None:
    """A workflow uses nothing by a name that others can move."""
    uses = [
        line.split("uses:")[1].split()[0]
        for path in project.glob(".github/workflows/*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert uses
    assert [name for name in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []
