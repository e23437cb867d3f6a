# SPDX-License-Identifier: GPL-2.0-or-later
"""One run on the model with a VMM that means harm, and everything that it leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITE = """
import sys
import pytest
from pytest_seves.errors import RigError
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.calls import open_kvm

pytestmark = pytest.mark.requirement("X-1")
NAMES = ["../../../../../tmp/escape", "</td><script>alert(1)</script>", "\\x1b[31m|\\x00", "a" * 300]
NAMES += ["\\u202e"]

def test_compared(launch_guest):
    assert launch_guest().stderr.text == "nothing\\n"

def test_contained(launch_guest):
    assert "absent" in launch_guest().console.text

def test_answers(launch_guest):
    assert launch_guest().qmp.greeting == {}

def test_surrogates(launch_guest):
    assert launch_guest().qmp.greeting["version"]["package"] == ""

def test_undecided(launch_guest):
    launch_guest().reached(Stage.RUNNING)

def test_error(launch_guest):
    raise RigError("it said " + launch_guest().stderr.text)

def test_printed(launch_guest):
    print(launch_guest().stdout.text)
    print(launch_guest().console.text, file=sys.stderr)
    assert False, launch_guest().console.text

def test_skipped(launch_guest):
    pytest.skip(launch_guest().console.text)

@pytest.mark.xfail(reason="known defect: \\x1b[31m<script>alert(1)</script>", strict=True)
def test_known(launch_guest):
    assert launch_guest().stdout.text == ""

def test_noted(launch_guest, request):
    request.node.user_properties.append(("said", launch_guest().stderr.text))

@pytest.fixture
def broken(launch_guest):
    raise ValueError(launch_guest().qmp.greeting["version"]["package"])

def test_of_a_broken_fixture(broken):
    pass

@pytest.mark.parametrize("name", NAMES)
def test_named(launch_guest, name):
    assert launch_guest().stderr.text == name

@pytest.mark.parametrize("name", NAMES)
def test_called(kvm, name):
    assert kvm(open_kvm())[0].errno is None
"""
CATALOGUE = '[[requirement]]\nid = "X-1"\nlevel = "must"\nsentence = "It."\nsource = "commit 0123456789ab"\n'
#: Tests that are, by outcome.
OUTCOMES = {"failed": 5 + 5, "error": 2, "undecided": 1, "known defect": 1, "passed": 1 + 5, "skipped": 1}


@dataclass(frozen=True)
class Harmed:
    """A run, its directory and what it said."""

    path: Path
    status: int
    output: str


def run(folder: Path, *, suite: str = SUITE, flood: bool = False, options: Sequence[str] = ()) -> Harmed:
    """A run below `folder`."""
    folder.joinpath("lab").mkdir()
    vmm = shutil.copy(HERE / "vmm.py", folder / "vmm")
    os.chmod(vmm, 0o755)
    if flood:
        folder.joinpath("flood").touch()
    folder.joinpath("lab/model.toml").write_text(
        f'[host]\nmodel = "linux-6.1:execute=0"\n[vmm]\nbinary = "{vmm}"\n'
    )
    folder.joinpath("requirements.toml").write_text(CATALOGUE)
    folder.joinpath("test_harm.py").write_text(suite)
    folder.joinpath("pytest.ini").write_text("[pytest]\njunit_logging = all\n")
    given = ["-p", "no:cacheprovider", "--sev-host=model", "--sev-lab=lab", "--sev-artifacts=out", *options]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *given],
        cwd=folder,
        env={**inherited, "CI": "1"},  # nothing is left out of a comparison
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return Harmed(folder, done.returncode, (done.stdout + done.stderr).decode())


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Harmed:
    """Two workers, every report, and as much of everything as pytest can show."""
    options = ["-n", "2", "-vv", "-rA", "--showlocals", "--color=no", "--junitxml=junit.xml"]
    return run(tmp_path_factory.mktemp("harm"), options=[*options, "--alluredir=allure"])
