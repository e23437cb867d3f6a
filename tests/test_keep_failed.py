# SPDX-License-Identifier: GPL-2.0-or-later
"""`--sev-keep-failed`: the guest of a failure runs on for a person to look at, and no longer than that."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

_LIMIT_S = 90.0
RED = ["--sev-defect", "smm-not-asked", "-k", "test_the_vm_is_asked_for_smm"]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start a run of one suite that fails; ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def run(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "suites", "-q", "--sev-host", "model", *options]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, cwd=project, text=True, **pipes))  # type: ignore[call-overload]
        return running[-1]

    yield run
    for process in running:
        process.terminate()
        process.communicate(timeout=_LIMIT_S)


def monitor(run: subprocess.Popen[str]) -> socket.socket:
    """The human monitor of the guest that the run has kept, as the run says it is reached."""
    assert run.stderr
    said = ""
    for line in run.stderr:
        said += line
        if found := re.search(r"^HMP: ssh -t -p \d+ .*UNIX-CONNECT:(\S+)$", line):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(_LIMIT_S)
            peer.connect(found[1])
            return peer
    raise AssertionError(f"no guest was kept: {said}")


def test_a_person_looks_at_it_and_ends_it(start: Start) -> None:
    """Its monitor answers; when it ends, so does the run, with the status of the failure."""
    run = start("--sev-keep-failed", *RED)
    with monitor(run) as peer:
        peer.sendall(b"quit\n")
        while peer.recv(4096):
            pass
    assert run.wait(_LIMIT_S) == pytest.ExitCode.TESTS_FAILED


def test_it_expires(start: Start) -> None:
    """Nobody looks: it is killed when its time is over."""
    run, began = start("--sev-keep-failed=0.05", *RED), time.monotonic()
    with monitor(run) as peer:
        while peer.recv(4096):
            pass
    assert run.wait(_LIMIT_S) == pytest.ExitCode.TESTS_FAILED
    assert time.monotonic() - began > 3.0


def test_it_ends_with_the_run(start: Start) -> None:
    """A run that is told to end takes it along."""
    run = start("--sev-keep-failed", *RED)
    with monitor(run) as peer, suppress(ConnectionResetError):
        run.terminate()
        while peer.recv(4096):
            pass


def test_nothing_is_kept_of_a_pass(start: Start) -> None:
    """Where nothing failed the run ends at once."""
    run = start("--sev-keep-failed", "-k", "test_the_vm_is_asked_for_smm")
    _, said = run.communicate(timeout=_LIMIT_S)
    assert (run.returncode, said) == (pytest.ExitCode.OK, "")


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "100000"])
def test_minutes_that_are_none(start: Start, minutes: str) -> None:
    """Refused before anything runs."""
    run = start(f"--sev-keep-failed={minutes}")
    _, said = run.communicate(timeout=_LIMIT_S)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--sev-keep-failed" in said
