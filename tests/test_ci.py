# SPDX-License-Identifier: GPL-2.0-or-later
"""The two checks of CI that look after the tests: nothing left running, nothing skipped in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_check(project: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts of .ci/ to its end."""
    argv = [sys.executable, str(project / ".ci" / name), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_leftover_is_named_and_ended(project: Path, tmp_path: Path) -> None:
    """A process that hides in a session of its own, below init, is found, killed, and fails the run."""
    os.mkfifo(tmp_path / "pid")
    hidden = f"setsid sh -c 'echo $$ >{tmp_path}/pid; exec sleep 1000'"
    script = f"{hidden} & read pid <{tmp_path}/pid; echo $pid"
    result = run_check(project, "leftovers.py", "--grace-s", 0.5, 30, "sh", "-c", script)
    assert result.returncode == 1
    assert "sleep 1000" in result.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


def test_endless_command_is_ended(project: Path) -> None:
    """A command that outlives its limit ends with timeout(1)'s status, and says what was running."""
    result = run_check(project, "leftovers.py", "--grace-s", 0.5, 0.5, "sleep", 1000)
    assert result.returncode == 124
    assert "sleep 1000" in result.stderr


@pytest.mark.parametrize("status", [0, 5])
def test_clean_command_keeps_its_status(project: Path, status: int) -> None:
    """Where nothing is left, the command's own status is the answer."""
    result = run_check(project, "leftovers.py", 30, "sh", "-c", f"exit {status}")
    assert (result.returncode, result.stderr) == (status, "")


@pytest.fixture
def results(pytester: pytest.Pytester) -> Path:
    """A JUnit file of one passed, one skipped and one expectedly failed test."""
    pytester.makepyfile(
        """
        import pytest

        def test_passes():
            pass

        def test_skips():
            pytest.skip("no such machine")

        @pytest.mark.xfail(reason="known", strict=True)
        def test_is_known():
            assert False
        """
    )
    pytester.runpytest_subprocess("--junitxml=results.xml", "-p", "no:seves")
    return pytester.path / "results.xml"


def test_unknown_skip_fails(project: Path, results: Path, tmp_path: Path) -> None:
    """A skip whose reason no pattern allows fails, by name and reason."""
    (tmp_path / "allowed").write_text("# why\nanother machine\n")
    result = run_check(project, "skips.py", tmp_path / "allowed", results)
    assert result.returncode == 1
    assert "test_skips: no such machine" in result.stdout


def test_allowed_skip_passes(project: Path, results: Path, tmp_path: Path) -> None:
    """An allowed skip passes and is counted; an expected failure has run; the last line is the count."""
    (tmp_path / "allowed").write_text("no such machine\n")
    result = run_check(project, "skips.py", tmp_path / "allowed", results)
    said = "1 skipped, as is allowed: no such machine\n2 passed, 0 failed, 1 skipped\n"
    assert (result.returncode, result.stdout) == (0, said)


def test_results_without_a_test_fail(project: Path, tmp_path: Path) -> None:
    """A run that executed nothing is not green."""
    (tmp_path / "allowed").write_text("")
    (tmp_path / "results.xml").write_text("<testsuites><testsuite/></testsuites>")
    result = run_check(project, "skips.py", tmp_path / "allowed", tmp_path / "results.xml")
    assert result.returncode == 1
    assert "no test ran: results.xml" in result.stdout


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo $HOST", "SC2086"),
        ("echo ${{ matrix.host }}", "an expression in a script"),
        ('echo "$HOST"', ""),
    ],
)
def test_steps_of_workflows_are_checked(project: Path, tmp_path: Path, script: str, what: str) -> None:
    """What shellcheck finds in a step fails, and so does a value that is pasted into it."""
    workflow = tmp_path / "w.yml"
    workflow.write_text(f"jobs:\n  a:\n    steps:\n      - uses: b\n      - run: {json.dumps(script)}\n")
    result = run_check(project, "steps.py", workflow)
    assert result.returncode == (1 if what else 0), result.stderr
    assert what in result.stdout
    assert ("w.yml: job a, step 2" in result.stdout) == bool(what)
