# SPDX-License-Identifier: GPL-2.0-or-later
"""``--sev-report``, from outside: a report is at the end of a run, whatever was left out is missed in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pytest_seves.cli import main
from tests.report.conftest import write_keys

Json = dict[str, Any]

CATALOGUE = """
[[requirement]]
id = "X-1"
level = "must"
sentence = "The first."
source = "d 1"
[[requirement]]
id = "X-2"
level = "must"
sentence = "The second."
source = "d 2"
"""
LEVELS = """
[[level]]
name = "ES-Full"
sentence = "Everything."
every = "must"
vcpus = [1, 2]
policies = [4]
"""
TESTS = """
import pytest

@pytest.mark.requirement("X-1")
@pytest.mark.parametrize("way", ["a", "b"])
def test_one(way):
    pass

@pytest.mark.requirement("X-2")
def test_two():
    pass
"""
WHOLE = ("--sev-host", "model", "--sev-report=out", "--sev-vcpus", "1,2", "--sev-policy", "4")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Suites of two requirements, whose tests launch nothing: no model is started for them."""
    pytester.mkdir("suites").joinpath("requirements.toml").write_text(CATALOGUE)
    pytester.path.joinpath("suites/levels.toml").write_text(LEVELS)
    pytester.path.joinpath("suites/test_x.py").write_text(TESTS)
    pytester.makeini("[pytest]\naddopts = -p no:labgrid")
    return pytester


def report(suite: pytest.Pytester) -> Json:
    """report.json."""
    told: Json = json.loads((suite.path / "out" / "report.json").read_text())
    return told


def left_out(suite: pytest.Pytester) -> list[str]:
    """Tests that the report misses."""
    entries = report(suite)["hosts"]["model"]["not_run"]
    return sorted(
        test.rpartition("::")[2] for e in entries if e["outcome"] == "not run" for test in e["tests"]
    )


def test_a_whole_run_leaves_a_report(suite: pytest.Pytester) -> None:
    """With its bundle below it, unsigned, and stamped, since the host is the model; verify finds it whole."""
    result = suite.runpytest_subprocess(*WHOLE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*qualification report*", "MODEL: NOT A QUALIFICATION", "model: ES-Full not reached"]
    )
    result.stdout.fnmatch_lines(["report: *out/report.html (unsigned)"])
    told = report(suite)
    assert (told["bundle"]["path"], told["suite"]["planned"], left_out(suite)) == ("evidence", 3, [])
    against = told["hosts"]["model"]["levels"][0]["against"]
    assert [entry["why"] for entry in against] == [
        "the host is the model, software: it qualifies nothing",
        "2 passed without evidence",
        "1 passed without evidence",
    ]
    assert {path.name for path in (suite.path / "out").iterdir()} == {
        "evidence",
        "report.html",
        "report.json",
    }
    assert main(["verify", str(suite.path / "out")]) == 2


@pytest.mark.parametrize(
    ("options", "missed"),
    [
        (["-k", "two"], ["test_one[a]", "test_one[b]"]),
        (["--deselect", "suites/test_x.py::test_two"], ["test_two"]),
        (["suites/test_x.py::test_one[a]"], ["test_one[b]", "test_two"]),
        (["suites/test_x.py::test_two", "-n", "2"], ["test_one[a]", "test_one[b]"]),
        (["-o", "python_functions=test_t*"], ["test_one[a]", "test_one[b]"]),
        (["-p", "picky"], ["test_one[b]"]),
    ],
    ids=["-k", "--deselect", "a case", "xdist", "an ini value", "a plugin"],
)
def test_whatever_was_left_out_is_missed(
    suite: pytest.Pytester, options: list[str], missed: list[str]
) -> None:
    """However it was left out, the report knows what a whole run has."""
    picky = (
        "def pytest_collection_modifyitems(items):\n    items[:] = [i for i in items if '[b]' not in i.name]"
    )
    suite.makepyfile(picky=picky)
    suite.syspathinsert()
    suite.runpytest_subprocess(*WHOLE, *options)
    assert left_out(suite) == missed


def test_slow_tests_are_part_of_a_whole_run(suite: pytest.Pytester) -> None:
    """What is left out unless --sev-slow asks for it is missed without it, and not with it."""
    file = suite.path / "suites" / "test_x.py"
    file.write_text(
        TESTS.replace('@pytest.mark.requirement("X-2")', '@pytest.mark.slow\n@pytest.mark.requirement("X-2")')
    )
    suite.runpytest_subprocess(*WHOLE)
    assert left_out(suite) == ["test_two"]
    shutil.rmtree(suite.path / "out")
    suite.runpytest_subprocess(*WHOLE, "--sev-slow")
    assert left_out(suite) == []


def test_options_from_the_environment_do_not_hide_what_was_left_out(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTEST_ADDOPTS holds for the run, not for what a whole run has."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k two")
    suite.runpytest_subprocess(*WHOLE)
    assert left_out(suite) == ["test_one[a]", "test_one[b]"]


def test_what_took_part_is_told(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that was named, and variables that pytest heeds, are in the report and on its page."""
    suite.makepyfile(judge="")
    suite.syspathinsert()
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p judge")
    suite.runpytest_subprocess(*WHOLE)
    told = report(suite)["suite"]
    assert "judge" in told["plugins"]
    assert told["plugins"]["pytest-xdist"]
    assert not [name for name in told["plugins"] if name.startswith(("_pytest", "pytest_seves", "xdist"))]
    assert told["environment"] == {"PYTEST_ADDOPTS": "-p judge"}
    assert "PYTEST_ADDOPTS=-p judge" in (suite.path / "out" / "report.html").read_text()


def test_a_run_that_stops_misses_the_rest(suite: pytest.Pytester) -> None:
    """After -x, what was not run is named."""
    file = suite.path / "suites" / "test_x.py"
    file.write_text(TESTS.replace("    pass", "    assert way != 'a'", 1))
    assert suite.runpytest_subprocess(*WHOLE, "-x").ret == 1
    assert left_out(suite) == ["test_one[b]", "test_two"]


def test_suites_that_cannot_be_collected_by_themselves_say_so(suite: pytest.Pytester) -> None:
    """A run that needs a plugin of its own cannot be compared with a whole one, and reaches nothing."""
    (suite.path / "suites" / "test_y.py").write_text("import os\nassert 'HELP' in os.environ\n")
    suite.runpytest_subprocess(*WHOLE, "--ignore=suites/test_y.py")
    assert "what a whole run has is not known: collecting the suites ended with 2" in "".join(
        report(suite)["hosts"]["model"]["against"]
    )


def test_edited_suites_have_another_hash(suite: pytest.Pytester) -> None:
    """One byte more in a test, or in the ini file, is another suite in the report."""
    found = []
    for edited in (None, "suites/test_x.py", "tox.ini"):
        if edited:
            with (suite.path / edited).open("a") as file:
                file.write("\n# easier\n")
        suite.runpytest_subprocess(*WHOLE)
        found.append(report(suite)["suite"]["sha256"])
        shutil.rmtree(suite.path / "out")
    assert len(set(found)) == 3


def test_a_signed_report(suite: pytest.Pytester, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a key that has a passphrase, given by a variable; verify knows the signer."""
    keys = write_keys(tmp_path, b"open sesame")
    environment = {**os.environ, "SESAME": "open sesame"}
    argv = [
        sys.executable,
        "-m",
        "pytest",
        *WHOLE,
        f"--sev-sign-key={keys.private}",
        "--sev-sign-passphrase=SESAME",
    ]
    done = subprocess.run(
        argv, cwd=suite.path, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "(signed by " in done.stdout
    assert main(["verify", str(suite.path / "out"), "--key", str(keys.public)]) == 2
    told = capsys.readouterr().out
    assert "holds: signed by key" in told
    assert "not checked: 3 tests passed without evidence" in told
    assert "WRONG" not in told
    everything = "".join(file.read_text() for file in (suite.path / "out").rglob("*") if file.is_file())
    assert "open sesame" not in everything
    assert "PRIVATE KEY" not in everything


def test_a_passphrase_is_asked_for_on_the_terminal(suite: pytest.Pytester, tmp_path: Path) -> None:
    """Before the first test, although output is captured; what is typed is the key's."""
    script = shutil.which("script")
    if script is None:
        pytest.skip("no script(1), which makes a terminal")
    keys = write_keys(tmp_path, b"open sesame")
    argv = [sys.executable, "-m", "pytest", *WHOLE, f"--sev-sign-key={keys.private}"]
    with subprocess.Popen(
        [script, "-qec", shlex.join(argv), "/dev/null"],
        cwd=suite.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        guard = threading.Timer(60, process.kill)
        guard.start()
        said = b""
        while not said.endswith(b"private.pem: ") and (byte := process.stdout.read(1)):
            said += byte
        process.stdin.write(b"open sesame\n")
        process.stdin.flush()
        said += process.stdout.read()
        guard.cancel()
    assert process.returncode == 0, said.decode()
    assert (suite.path / "out" / "report.dsse.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sev-sign-key=none.pem"], "*none.pem: the key cannot be read: No such file*"),
        (["--sev-artifacts=out"], "*a report is not written into the evidence that it speaks of*"),
        (["--sev-report=", "--sev-sign-key=x"], "*--sev-sign-key signs a report: give --sev-report DIR*"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_test(
    suite: pytest.Pytester, options: list[str], said: str
) -> None:
    """A usage error, and nothing was run."""
    result = suite.runpytest_subprocess(*WHOLE, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
    assert not (suite.path / "out" / "report.json").exists()


def test_an_open_key_is_refused_before_the_first_test(suite: pytest.Pytester, tmp_path: Path) -> None:
    """With what to do."""
    keys = write_keys(tmp_path)
    keys.private.chmod(0o644)
    result = suite.runpytest_subprocess(*WHOLE, f"--sev-sign-key={keys.private}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*others may read this key (mode 0644*chmod 600*"])


def test_an_archived_bundle_makes_the_same_report(suite: pytest.Pytester, tmp_path: Path) -> None:
    """`pytest-seves report` of the bundle says what the run's report says, but for when and where."""
    suite.runpytest_subprocess(*WHOLE)
    assert main(["report", str(suite.path / "out" / "evidence"), "--output", str(tmp_path / "later")]) == 0
    later: Json = json.loads((tmp_path / "later" / "report.json").read_text())
    first = report(suite)
    assert {key for key in first if later[key] != first[key]} <= {"made", "bundle"}
    assert later["bundle"] == {**first["bundle"], "path": None}


def test_collecting_writes_no_report(suite: pytest.Pytester) -> None:
    """--collect-only leaves nothing behind."""
    suite.runpytest_subprocess(*WHOLE, "--collect-only")
    assert not (suite.path / "out").exists()


def test_a_replay_makes_no_report(suite: pytest.Pytester) -> None:
    """It would be one of archived evidence that a newer suite judged; the command that makes one is named."""
    result = suite.runpytest_subprocess("--sev-replay=old", "--sev-report=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*`pytest-seves report BUNDLE --output DIR`*"])


def test_a_run_on_the_model_is_signed_and_verified(tmp_path: Path, project: Path) -> None:
    """Real launches: the page links to evidence that is there, a launch is drawn, and all of it holds."""
    keys = write_keys(tmp_path)
    out = tmp_path / "out"
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "suites/vmsa",
        "-k",
        "2vcpu-ES and every_vcpu",
        "--sev-host",
        "model",
    ]
    argv += [f"--sev-report={out}", f"--sev-sign-key={keys.private}", "-p", "no:cacheprovider"]
    done = subprocess.run(argv, cwd=project, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert main(["verify", str(out), "--key", str(keys.public)]) == 0
    told: Json = json.loads((out / "report.json").read_text())
    assert told["stamps"] == ["MODEL: NOT A QUALIFICATION"]
    assert [call["name"] for call in told["launch"]["calls"]].count("KVM_CREATE_VCPU") == 2
    links = re.findall(r'href="([^"]+)"', (out / "report.html").read_text())
    assert links
    assert all((out / unquote(link)).is_file() for link in links)
