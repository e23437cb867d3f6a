# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is not ready is an error with advice, in the table and in the tests; never a failed verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

OLD_QEMU = '#!/bin/sh\necho "QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)"\n'


@pytest.fixture
def lab(pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory with a lab and one test that launches a guest."""
    pytester.path.joinpath("lab").mkdir()
    pytester.makepyfile("def test_it(launch_guest): launch_guest()")
    return pytester


def model(lab: pytest.Pytester, text: str) -> None:
    """The lab's file of the model."""
    lab.path.joinpath("lab/model.toml").write_text('[host]\nmodel = "linux-6.1"\n' + text)


def executable(path: Path, text: str) -> Path:
    """A program on the host."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def refused(lab: pytest.Pytester, *lines: str) -> None:
    """`--sev-check` fails with these lines, and a test is an error that shows them too."""
    check = lab.runpytest_subprocess("--sev-host", "model", "--sev-check")
    assert check.ret == 1
    check.stdout.fnmatch_lines(lines, consecutive=False)
    run = lab.runpytest_subprocess("--sev-host", "model")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*HostError: model: not ready for SEV-ES; see --sev-check:*"])


def test_no_vmm(lab: pytest.Pytester) -> None:
    """A VMM that is not there is named, with where it was looked for."""
    model(lab, '[vmm]\nbinary = "qemu-system-none"\n')
    refused(lab, "FAIL *VMM*qemu-system-none*")


def test_a_vmm_that_is_too_old(lab: pytest.Pytester) -> None:
    """A QEMU before 6.0 knows no SEV-ES."""
    binary = executable(lab.path / "qemu", OLD_QEMU)
    model(lab, f'[vmm]\nbinary = "{binary}"\n')
    refused(lab, "FAIL *VMM*5.2.0*", "*6.0*")


@pytest.mark.parametrize("size", [None, 0, 1000])
def test_firmware_missing_or_truncated(lab: pytest.Pytester, size: int | None) -> None:
    """A firmware file that is not there, empty or cut is named."""
    image = lab.path / "OVMF.fd"
    if size is not None:
        image.write_bytes(bytes(size))
    model(lab, f'[firmware]\npath = "{image}"\n')
    refused(lab, "FAIL *guest firmware*")


def test_firmware_of_another_build(lab: pytest.Pytester) -> None:
    """A firmware file with another hash than the pinned one is refused."""
    model(lab, f'[firmware]\nsha256 = "{"0" * 64}"\n')
    refused(lab, "FAIL *guest firmware hash*")


def test_a_malformed_inventory(lab: pytest.Pytester) -> None:
    """A mistake in a lab file is a usage error with file, line and key, before any connection."""
    model(lab, '[vmm]\nbinry = "qemu"\n')
    result = lab.runpytest_subprocess("--sev-host", "model")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*model.toml:4: *binry*did you mean 'binary'*"])


def test_a_ready_host(lab: pytest.Pytester) -> None:
    """The model is ready; the table is kept as JSON with the artifacts."""
    result = lab.runpytest_subprocess("--sev-host", "model", "--sev-check", "--sev-artifacts", "out")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["model", "ok *CPU*", "ready: * ok"])
    rows = json.loads(lab.path.joinpath("out/model/readiness.json").read_text())
    assert rows["ready"] is True
    assert {row["state"] for row in rows["rows"]} == {"ok"}


def test_workers_share_the_model(lab: pytest.Pytester) -> None:
    """Under xdist the workers use one model host, and their launches are added up."""
    lab.makepyfile(test_two="def test_it(launch_guest): launch_guest(vcpus=2)")
    result = lab.runpytest_subprocess("--sev-host", "model", "-n", "2")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
