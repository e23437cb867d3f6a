# SPDX-License-Identifier: GPL-2.0-or-later
"""``--sev-replay``: the same verdicts without the host, and which are not the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_seves.blocked import EXIT_BLOCKED
from pytest_seves.evidence.bundle import Bundle
from tests.bundle.conftest import PROJECT, SUITES, run_in
from tests.evidence import bundles

Suite = Callable[..., Path]

#: Says at its end which modules that reach hosts or launch guests were imported.
WATCHED = """
import atexit
HEAVY = {"paramiko", "qemu", "asyncio", "unicorn", "pytest_seves.host.ssh", "pytest_seves.guest.launcher"}
atexit.register(lambda: print("imported:", sorted(HEAVY & set(sys.modules))))
"""


def test_verdicts_are_the_recorded_ones(recorded: Path) -> None:
    """Shared launches, lone ones, direct calls and the owner's session, with no host and no VMM."""
    wanted = Bundle.open(recorded).results
    done = run_in(PROJECT, *SUITES[:3], f"--sev-replay={recorded}", "-n0", "-rs", program=WATCHED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(wanted)} verdicts are as recorded, 0 changed." in done.stdout
    assert "not in the bundle" not in done.stdout
    assert "imported: []" in done.stdout
    assert "The model is software: nothing here is a qualification of hardware." in done.stdout


def test_workers_replay_too(recorded: Path) -> None:
    """With two of them the verdicts are the same, and the controller compares all of them."""
    wanted = Bundle.open(recorded).results
    done = run_in(PROJECT, *SUITES[:3], f"--sev-replay={recorded}", "-n2")
    assert f"{len(wanted)} verdicts are as recorded, 0 changed." in done.stdout, done.stdout


def test_a_replay_leaves_the_bundle_as_it_was(recorded: Path, tmp_path: Path) -> None:
    """It can be replayed again, from a copy elsewhere and read-only."""
    copy = shutil.copytree(recorded, tmp_path / "copy")
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    for file in before:
        file.chmod(0o555 if file.is_dir() else 0o444)
    done = run_in(PROJECT, "suites/smm", f"--sev-replay={copy}", "-n0")
    for file in before:
        file.chmod(0o755)  # it is to be removed
    assert done.returncode == 0, done.stdout
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before
    assert re.search(r"\d+ recorded tests were not judged again", done.stdout)


def test_an_edited_bundle_is_not_judged(recorded: Path, tmp_path: Path) -> None:
    """One byte of a timeline, and the run does not start."""
    copy = shutil.copytree(recorded, tmp_path / "copy")
    file = min(copy.glob("*/launches/*/timeline.jsonl"))
    file.write_bytes(file.read_bytes().replace(b'"ret":0', b'"ret":1', 1))
    done = run_in(PROJECT, "suites/init", f"--sev-replay={copy}", "-n0")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{file}: it was changed: wanted SHA-256" in done.stderr


JUDGE = """
def test_judged(launch_guest):
    assert launch_guest().timeline.created_vcpus == [WANTED]

def test_other(launch_guest):
    launch_guest(vcpus=OTHER)

def test_put(launch_guest):
    launch_guest(firmware=launch_guest.put("image.bin", CONTENT))

def test_alone(launch_guest):
    with launch_guest.alone() as alone:
        alone(vcpus=OTHER)

def test_calls(kvm):
    from pytest_seves.guest.calls import open_kvm, create_vm
    assert kvm(open_kvm(), create_vm(TYPE))[0].ok

def test_made(launch_guest):
    import random
    assert launch_guest.made("NAME", lambda: str(random.random()))
"""


def judge(**values: str) -> str:
    """That suite with these values."""
    given = {"WANTED": "0", "OTHER": "1", "CONTENT": "bytes(4096)", "TYPE": "0", "NAME": "chance", **values}
    text = JUDGE
    for name, value in given.items():
        text = text.replace(name, value)
    return text


def test_a_suite_that_judges_otherwise_says_what_changed(suite: Suite, tmp_path: Path) -> None:
    """Another verdict is listed with its reason; what the bundle does not have is a skip that names it."""
    root = tmp_path / "bundle"
    folder = suite(judge())
    assert run_in(folder, "--sev-host=model", f"--sev-artifacts={root}").returncode == 0
    same = run_in(folder, f"--sev-replay={root}")
    assert "6 verdicts are as recorded, 0 changed." in same.stdout, same.stdout
    suite_again = judge(WANTED="7", OTHER="2", CONTENT="bytes(4097)", TYPE="1", NAME="other")
    (folder / "test_it.py").write_text((folder / "test_it.py").read_text().replace(judge(), suite_again))
    done = run_in(folder, f"--sev-replay={root}")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "0 verdicts are as recorded, 6 changed." in done.stdout, done.stdout
    for line in (
        "test_judged (model): passed then, failed now: assert [0] == [7]",
        "test_other (model): passed then, skipped now: not in the bundle: a launch of a guest with "
        '{"vcpus": 2}',
        "test_put (model): passed then, skipped now: not in the bundle: a launch of a guest with",
        "test_alone (model): passed then, skipped now: not in the bundle: a launch of",
        "test_calls (model): passed then, skipped now: not in the bundle: a program of 2 direct calls",
        "test_made (model): passed then, skipped now: not in the bundle: what the test made as 'other'",
    ):
        assert f"  test_it.py::{line}" in done.stdout


def test_a_test_that_wants_the_host_itself_is_skipped(suite: Suite, tmp_path: Path) -> None:
    """There is no connection to give it."""
    root = tmp_path / "bundle"
    folder = suite("def test_it(sev_host): assert sev_host.client.call('health')\n")
    run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    assert [result.outcome for result in Bundle.open(root).results] == ["passed"]
    done = run_in(folder, f"--sev-replay={root}")
    assert "passed then, skipped now: not in the bundle: a connection to model" in done.stdout, done.stdout


def test_what_was_no_verdict_is_none_again(suite: Suite, tmp_path: Path) -> None:
    """An error of the rig is the same error, although the test would pass now; it is not run."""
    root = tmp_path / "bundle"
    top = "from pytest_seves.errors import AgentDied\n"
    folder = suite(top + "def test_it(sev_host): raise AgentDied('it died', host=sev_host.name)\n")
    run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    (folder / "test_it.py").write_text("def test_it(sev_host): pass\n")
    done = run_in(folder, f"--sev-replay={root}")
    assert "RigError: as recorded: AgentDied: model: it died" in done.stdout
    assert "1 verdicts are as recorded, 0 changed." in done.stdout


def blocked(root: Path) -> None:
    """A bundle of a run whose host was blocked before its only test."""
    bundles.write(root)
    why = "blocked: lab1: rebooted: boot id 2, was 1, before vmsa"
    line = json.loads((root / "results.jsonl").read_text())
    line.update(test="test_it.py::test_it", outcome="blocked", why=why, rig=True, evidence=[])
    (root / "results.jsonl").write_text(json.dumps(line) + "\n")
    bundles.seal(root, blocked={"lab1": {"why": why, "after": 0, "of": 1}}, exit_status=EXIT_BLOCKED)


def test_a_blocked_host_is_blocked_again(suite: Suite, tmp_path: Path) -> None:
    """Its tests are refused as they were, and the exit status is the same."""
    blocked(tmp_path / "bundle")
    done = run_in(suite("def test_it(sev_host): pass"), f"--sev-replay={tmp_path / 'bundle'}")
    assert done.returncode == EXIT_BLOCKED, done.stdout
    assert "lab1: blocked by rebooted after 0 of 1 tests" in done.stdout
    assert "1 verdicts are as recorded, 0 changed." in done.stdout


def test_a_recorded_reason_does_nothing_to_the_terminal(suite: Suite, tmp_path: Path) -> None:
    """Why a host was blocked may be anything, and is shown escaped."""
    blocked(tmp_path / "bundle")
    text = (tmp_path / "bundle/results.jsonl").read_text().replace("rebooted", "\\u001b[2J")
    (tmp_path / "bundle/results.jsonl").write_text(text)
    row = {"why": "\x1b]0;x\x07", "after": 0, "of": 1}
    bundles.seal(tmp_path / "bundle", blocked={"lab1": row})
    folder = suite("def test_it(sev_host): pass")
    done = run_in(folder, f"--sev-replay={tmp_path / 'bundle'}", "--color=no")
    assert r"lab1: \x1b[2J: boot id 2" in done.stdout
    assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)


def test_several_hosts_or_one_of_them(suite: Suite, tmp_path: Path) -> None:
    """A test has another name with one host than with two, and is the same test."""
    lab, root = tmp_path / "lab", tmp_path / "bundle"
    lab.mkdir()
    for name in ("one", "two"):
        (lab / f"{name}.toml").write_text('[host]\nmodel = "linux-6.1"\n')
    body = "def test_it(launch_guest, vcpus, policy): assert launch_guest(vcpus=vcpus, policy=policy).host\n"
    folder = suite(body)
    given = ("--sev-host=one", "--sev-host=two", f"--sev-lab={lab}", "--sev-vcpus=2", "--sev-policy=5")
    assert run_in(folder, *given, f"--sev-artifacts={root}").returncode == 0
    both = run_in(folder, f"--sev-replay={root}")
    assert "test_it.py::test_it[2vcpu-ES+NODBG-one]" in Bundle.open(root).results[0].test
    assert "2 verdicts are as recorded, 0 changed." in both.stdout, both.stdout
    alone = run_in(folder, f"--sev-replay={root}", "--sev-host=two")
    assert "1 verdicts are as recorded, 0 changed." in alone.stdout, alone.stdout


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--sev-check", "no host is used, so --sev-check cannot be heeded"),
        ("--sev-artifacts=out", "no host is used, so --sev-artifacts cannot be heeded"),
        ("--sev-defect=vmsa-update-dropped", "no host is used, so --sev-defect cannot be heeded"),
        ("--sev-keep-failed", "no host is used, so --sev-keep-failed cannot be heeded"),
        ("--sev-host=lab9", "has no host 'lab9'; it has lab1"),
    ],
)
def test_what_cannot_be_heeded_is_refused(suite: Suite, tmp_path: Path, option: str, wanted: str) -> None:
    """An option that only a host can heed, or a host that is not in the bundle, is a usage error."""
    bundles.write(tmp_path / "bundle")
    folder = suite("def test_it(sev_host): pass")
    done = run_in(folder, f"--sev-replay={tmp_path / 'bundle'}", option)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert wanted in done.stderr


def test_a_directory_that_is_no_bundle_is_refused(suite: Suite, tmp_path: Path) -> None:
    """The error says which, and what was wanted."""
    done = run_in(suite("def test_it(sev_host): pass"), f"--sev-replay={tmp_path}")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--sev-replay: {tmp_path / 'bundle.json'}: there is none" in done.stderr


def test_defaults_are_those_of_the_run(suite: Suite, tmp_path: Path) -> None:
    """vCPU counts and policies come from the bundle, unless the command line names some."""
    bundles.write(tmp_path / "bundle")
    folder = suite("def test_it(launch_guest, vcpus, policy): pass")
    given = (f"--sev-replay={tmp_path / 'bundle'}", "--collect-only", "-q")
    assert "test_it[2vcpu-ES+NODBG]" in run_in(folder, *given).stdout
    assert "test_it[3vcpu-ES+NODBG]" in run_in(folder, *given, "--sev-vcpus=3").stdout


def test_hostile_text_does_nothing_to_the_terminal(suite: Suite, tmp_path: Path) -> None:
    """What the bundle says of its suite and of a changed verdict is shown escaped."""
    bundles.write(tmp_path / "bundle", outcome="failed")
    bundles.seal(tmp_path / "bundle", suite={"name": "\x1b[2J", "version": "\x07"}, defects=["\x1b]0;x\x07"])
    done = run_in(suite("def test_it(sev_host): pass"), f"--sev-replay={tmp_path / 'bundle'}", "--color=no")
    assert r"recorded by \x1b[2J \x07" in done.stdout
    assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)
