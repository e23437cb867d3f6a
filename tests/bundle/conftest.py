# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on the model that leave bundles, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
#: Shared launches, an owner's session, launches that are alone, direct calls, a known defect, skips.
SUITES = (
    "suites/init",
    "suites/smm",
    "suites/kvm/test_vm.py",
    "--sev-vcpus=1,2",
    "--sev-policy=0x5",
)
CATALOGUE = """
[[requirement]]
id = "X-1"
level = "must"
sentence = "The first."
source = "d"
"""


def environment() -> dict[str, str]:
    """Ours, without what the pytest around this one says to its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def run_in(folder: Path, *arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest.

    :param program: runs in its process before it.
    """
    start = f"import sys, pytest\n{program}\nsys.exit(pytest.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", start, "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run of some suites, with two workers."""
    root = tmp_path_factory.mktemp("recorded") / "bundle"
    done = run_in(PROJECT, *SUITES, "--sev-host=model", "-n2", f"--sev-artifacts={root}")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """Factory: a directory with a suite of one file."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "requirements.toml").write_text(CATALOGUE)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:labgrid\nfilterwarnings = error\n")

    def write(body: str) -> Path:
        (folder / "test_it.py").write_text(
            f'import pytest\npytestmark = pytest.mark.requirement("X-1")\n{body}'
        )
        return folder

    return write
