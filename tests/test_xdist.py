# SPDX-License-Identifier: GPL-2.0-or-later
"""Several workers, several hosts: who launches what, and what is left of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.scheduling import launch_of

#: Tests of two launches, which several files share.
FEW = ["suites/init", "suites/vmsa", "--sev-vcpus=1,3", "--sev-policy=0x5", "-k", "vcpu-ES"]


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("suites/vmsa/test_vmsa.py::test_a[3vcpu-ES+NODBG]", "3vcpu-ES+NODBG@"),
        ("suites/init/test_init.py::test_b[3vcpu-ES+NODBG]", "3vcpu-ES+NODBG@"),
        ("suites/init/test_init.py::test_b[3vcpu-ES+NODBG-INIT2]", "3vcpu-ES+NODBG-INIT2@"),
        ("suites/ap_boot/test_reset_state.py::test_c[own-3vcpu]", "3vcpu@"),
        ("suites/ap_boot/test_running.py::test_d[3vcpu-own]", "3vcpu@"),
        ("suites/vmsa/test_vmsa.py::test_g[260vcpu]", "260vcpu@"),
        ("suites/smm/test_smm.py::test_e[q35]", "suites/smm/test_smm.py@"),
        ("suites/smm/test_smm.py::test_f", "suites/smm/test_smm.py@"),
        ("suites/smm/test_smm.py::test_f[epyc]", "suites/smm/test_smm.py@epyc"),
        ("suites/smm/test_smm.py::test_f[q35-old-epyc]", "suites/smm/test_smm.py@old-epyc"),
        ("suites/vmsa/test_vmsa.py::test_a[3vcpu-ES-old-epyc]", "3vcpu-ES@old-epyc"),
    ],
)
def test_scopes(nodeid: str, scope: str) -> None:
    """Tests of one launch on one host have one scope, and others have another."""
    hosts = ["epyc", "old-epyc"] if "epyc" in nodeid else ["model"]
    assert launch_of(nodeid, hosts) == scope


class Session:
    """What one run of the suites said and left."""

    def __init__(
        self,
        project: Path,
        folder: Path,
        hosts: Sequence[str],
        options: Sequence[str],
        profile: str = "linux-6.1",
    ) -> None:
        lab = folder / "lab"
        lab.mkdir(exist_ok=True)
        for host in hosts:
            (lab / f"{host}.toml").write_text(f'[host]\nmodel = "{profile}"\n')
        self.artifacts = folder / "artifacts"
        given = [f"--sev-lab={lab}", f"--sev-artifacts={self.artifacts}", "-p", "no:cacheprovider"]
        named = [word for host in hosts for word in ("--sev-host", host)]
        self.environment = {"SEVES_TEST_RUN": str(folder)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *FEW, *named, *given, *options],
            cwd=project,
            env={**inherited, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.status, self.output = done.returncode, done.stdout + done.stderr

    @property
    def launches(self) -> int:
        """How many guests were launched."""
        found = re.search(r"^(\d+) launches served", self.output, re.MULTILINE)
        assert found, self.output
        return int(found[1])

    @property
    def verdicts(self) -> dict[str, Any]:
        """By host and requirement."""
        told = json.loads((self.artifacts / "verdicts.json").read_text())
        return {host: entry["requirements"] for host, entry in told.items()}

    @property
    def left(self) -> list[str]:
        """Command lines of processes that the run left behind."""
        marker = f"SEVES_TEST_RUN={self.environment['SEVES_TEST_RUN']}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # gone meanwhile, or another account's
        return found


def test_two_workers_make_no_launch_twice(project: Path, tmp_path: Path) -> None:
    """`-n 2` alone launches as often as one process does, with the same verdicts."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone = Session(project, one, ["model"], ["-n", "0"])
    shared = Session(project, two, ["model"], ["-n", "2"])
    assert (alone.status, shared.status) == (0, 0), shared.output
    assert shared.launches == alone.launches
    assert {name: entry["counts"] for name, entry in shared.verdicts["model"].items()} == {
        name: entry["counts"] for name, entry in alone.verdicts["model"].items()
    }
    assert shared.left == []


def test_two_hosts_have_verdicts_of_their_own(project: Path, tmp_path: Path) -> None:
    """Each host runs every test; what is found on one is not said of the other."""
    run = Session(project, tmp_path, ["east", "west"], ["-n", "2", "--sev-defect", "vmsa-update-twice"])
    assert run.status == 1, run.output
    counts = [{n: e["counts"] for n, e in run.verdicts[host].items()} for host in ("east", "west")]
    assert counts[0] == counts[1]
    assert counts[0]["VMSA-3"]["failed"]
    evidence = {host: run.verdicts[host]["VMSA-3"]["evidence"] for host in ("east", "west")}
    assert all(f"/{host}/launches/" in path for host, path in evidence.items())
    assert run.left == []


@pytest.mark.parametrize(
    "options",
    [["-n", "2", "--dist", "each"], ["-n", "2", "--maxfail=1", "--sev-defect", "vmsa-update-twice"]],
    ids=["each", "maxfail"],
)
def test_however_it_ends_nothing_is_left(project: Path, tmp_path: Path, options: list[str]) -> None:
    """No guest, agent or model host outlives a run."""
    run = Session(project, tmp_path, ["model"], options)
    assert run.status == (2 if "--maxfail=1" in options else 0), run.output
    assert run.left == []


def test_workers_wait_for_an_asid(project: Path, tmp_path: Path) -> None:
    """On a host with one ASID four workers launch one SEV-ES guest at a time, and none is refused."""
    run = Session(project, tmp_path, ["model"], ["-n", "4", "--dist", "load"], "linux-6.1:es_asids=1")
    assert run.status == 0, run.output
    assert run.left == []


def test_a_known_defect_is_known_on_each_of_several_hosts(project: Path, tmp_path: Path) -> None:
    """The host's name in a test's id does not hide which test it is."""
    run = Session(project, tmp_path, ["east", "west"], ["-n", "2", "-k", "refused_cleanly"])
    assert run.status == 0, run.output
    assert [run.verdicts[host]["INIT-5"]["verdict"] for host in ("east", "west")] == ["known defect"] * 2
