# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves with ``--sev-artifacts``: by its schemas, without secrets, whole or said to be not."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_seves.evidence
from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import Bundle
from tests.bundle.conftest import CATALOGUE, PROJECT, environment, run_in

SCHEMAS = Path(pytest_seves.evidence.__file__).parent / "schemas"
Suite = Callable[..., Path]


def schema(name: str) -> jsonschema.Draft202012Validator:
    """A schema that is shipped."""
    text = (SCHEMAS / f"{name}.schema.json").read_text()
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(json.loads(text), format_checker=checker)


@pytest.mark.parametrize("file", sorted(SCHEMAS.glob("*.json")), ids=lambda file: file.name)
def test_schemas_are_schemas(file: Path) -> None:
    """Each is one itself, and refuses what is empty."""
    content = json.loads(file.read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    assert not jsonschema.Draft202012Validator(content).is_valid({})


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("bundle", "bundle.json"),
        ("facts", "*/facts.json"),
        ("launch", "*/launches/*/launch.json"),
        ("calls", "*/calls/*.json"),
        ("made", "*/made/*.json"),
    ],
)
def test_a_run_fits_its_schemas(recorded: Path, name: str, pattern: str) -> None:
    """Every JSON file of a real run, and there is at least one of each."""
    files = sorted(recorded.glob(pattern))
    assert files
    for file in files:
        schema(name).validate(json.loads(file.read_text()))


def test_results_fit_their_schema(recorded: Path) -> None:
    """Every line."""
    for line in (recorded / "results.jsonl").read_text().splitlines():
        schema("result").validate(json.loads(line))


def test_every_test_has_its_evidence(recorded: Path) -> None:
    """All is sealed and sound; a launch that many tests judged is there once."""
    bundle = Bundle.open(recorded)
    judged = [e for r in bundle.results for e in r.evidence if e.kind == "launch"]
    assert bundle.about.complete
    assert bundle.about.launches == len(bundle.manifests)
    assert len(judged) > len({e.path for e in judged}) > 1
    assert {e.kind for r in bundle.results for e in r.evidence} == {"launch", "alone", "calls", "made"}
    assert [r.test for r in bundle.results if r.outcome == "passed" and not r.evidence] == []
    for manifest in bundle.manifests:
        bundle.launch(manifest)


def test_the_environment_is_told_with_hashes(recorded: Path) -> None:
    """VMM and firmware have theirs, and so has what was put on the host for the guest."""
    manifests = Bundle.open(recorded).manifests
    for manifest in manifests:
        environment = manifest.environment
        assert len(environment["vmm"]["sha256"]) == len(environment["firmware"]["sha256"]) == 64
    session = next(m for m in manifests if m.spec["session"])
    assert set(session.environment["files"]) == {session.spec["session"][n] for n in ("dh_cert", "session")}
    measured = [m.raw["measurement"] for m in manifests if m.raw["measurement"]]
    assert {len(text) for text in measured} == {2 * 48}  # HMAC and nonce


def test_nothing_lies_there_half_written(recorded: Path) -> None:
    """No temporary name is left, no link, and every file is sealed."""
    files = {str(f.relative_to(recorded)) for f in recorded.rglob("*") if not f.is_dir()}
    assert files == {*Bundle.open(recorded).names, "bundle.json"}
    assert not [name for name in files if ".tmp-" in name]


SECRET_SUITE = '''
import base64, json, pathlib
from pytest_seves.guest.spec import OwnerSession
from pytest_seves.measurement.session import create_session
from pytest_seves.evidence.timeline import Stage

def test_owner(launch_guest, sev_host):
    """A launch with an owner's session, whose keys the owner keeps outside."""
    asked = launch_guest().reached(Stage.RUNNING)
    made = create_session(base64.b64decode(asked.qmp.replies("query-sev-capabilities")[0]["pdh"]), 5)
    text = launch_guest.made("owner", lambda: made.session_file)
    files = OwnerSession(
        dh_cert=launch_guest.put("cert", made.dh_cert_file.encode()),
        session=launch_guest.put("session", text.encode()),
    )
    identity = sev_host.entry.identity
    key = pathlib.Path(identity).read_text().splitlines()[1:-1]
    told = {"tek": made.tek.hex(), "tik": made.tik.hex(), "identity": str(identity), "key": key}
    pathlib.Path("SECRETS").write_text(json.dumps(told))
    launch_guest(policy=5, session=files).reached(Stage.RUNNING)

def test_a_rig_that_names_the_key(sev_host):
    """What the SSH side says of a key that cannot be used, it says with its path."""
    from pytest_seves.errors import AuthenticationFailed
    raise AuthenticationFailed(f"{sev_host.entry.identity} cannot be used", host=sev_host.name)
'''


def spellings(key: bytes) -> Iterator[bytes]:
    """How a key would look in a file: raw, in hex, in base64 at any offset."""
    yield key
    yield key.hex().encode()
    yield key.hex().upper().encode()
    for lead in range(3):
        coded = base64.b64encode(bytes(lead) + key)
        yield coded[4 if lead else 0 : -4]


def test_no_secret_is_written(suite: Suite, tmp_path: Path) -> None:
    """Neither the owner's keys nor the private key of the connection, nor where that lies."""
    folder = suite(SECRET_SUITE.replace("SECRETS", str(tmp_path / "secrets.json")))
    root = tmp_path / "bundle"
    done = run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    secrets = json.loads((tmp_path / "secrets.json").read_text())
    assert "1 passed, 1 error" in done.stdout, done.stdout
    patterns = [s for name in ("tek", "tik") for s in spellings(bytes.fromhex(secrets[name]))]
    patterns += [secrets["identity"].encode(), *(line.encode() for line in secrets["key"])]
    files = [file for file in root.rglob("*") if file.is_file()]
    assert [(f, p) for f in files for p in patterns if p in f.read_bytes()] == []
    assert "<private key> cannot be used" in (root / "results.jsonl").read_text()


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_killed_run_is_readable(tmp_path: Path, after: int) -> None:
    """SIGKILL of the controller after so many results: what is there is whole, and said to be incomplete."""
    root = tmp_path / "bundle"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n2", "--sev-host=model"]
    command += ["suites/init", "suites/smm", f"--sev-artifacts={root}"]
    own = {**environment(), "SEVES_TEST_RUN": str(tmp_path)}
    with subprocess.Popen(command, cwd=PROJECT, env=own, stdout=subprocess.PIPE, text=True) as process:
        results = root / "results.jsonl"
        while not results.exists() or len(results.read_bytes().splitlines()) < after:
            assert process.poll() is None, process.stdout and process.stdout.read()
            select.select([], [], [], 0.02)  # a file cannot be waited for
        process.kill()
        process.communicate()
    gone(str(tmp_path))
    bundle = Bundle.open(root)
    assert not bundle.about.complete
    assert "incomplete" in bundle.notes[0]
    assert len(bundle.results) >= after
    for manifest in bundle.manifests:
        bundle.launch(manifest)
    replayed = run_in(PROJECT, "suites/init", "suites/smm", f"--sev-replay={root}", "-n0")
    assert "incomplete: the run was killed" in replayed.stdout or after == 0
    assert ", 0 changed" in replayed.stdout or after == 0, replayed.stdout


def carrying(marker: bytes) -> Iterator[int]:
    """Processes that have this in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes():
                yield int(process.name)
        except OSError:  # it ended meanwhile, or is somebody else's
            continue


def gone(run: str) -> None:
    """Wait until no process of a run is left: its workers end by themselves."""
    for pid in carrying(f"SEVES_TEST_RUN={run}".encode()):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], 30.0)[0], f"process {pid} is left"
        finally:
            os.close(descriptor)


def test_an_earlier_run_is_not_overwritten(suite: Suite, tmp_path: Path) -> None:
    """The error names the directory and what to do; the evidence that is there stays as it was."""
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "bundle.json").write_text("{}")
    done = run_in(suite("def test_it(sev_host): pass"), "--sev-host=model", f"--sev-artifacts={root}")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--sev-artifacts {root}: bundle.json of an earlier run is there already" in done.stderr
    assert "name another directory, or remove this one" in done.stderr
    assert [file.name for file in root.iterdir()] == ["bundle.json"]


def test_two_words_are_one(suite: Suite, tmp_path: Path) -> None:
    """``--sev-artifacts DIR`` elsewhere means the same to workers, which parse it when DIR is there."""
    folder = suite("def test_it(sev_host): pass")
    done = run_in(folder, "--sev-host", "model", "-n1", "--sev-artifacts", str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stdout
    (result,) = Bundle.open(tmp_path / "elsewhere").results
    assert (result.test, result.outcome) == ("test_it.py::test_it", "passed")


def test_a_listing_leaves_nothing(suite: Suite, tmp_path: Path) -> None:
    """``--collect-only`` is no run."""
    folder = suite("def test_it(sev_host): pass")
    run_in(folder, "--sev-host=model", f"--sev-artifacts={tmp_path / 'bundle'}", "--collect-only")
    assert not (tmp_path / "bundle").exists()


def test_a_log_that_still_grows_is_no_part_of_it(suite: Suite, tmp_path: Path) -> None:
    """A job that writes its own output into the same directory does not break the seal."""
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "job.log").write_text("begun\n")
    run_in(suite("def test_it(sev_host): pass"), "--sev-host=model", f"--sev-artifacts={root}")
    (root / "job.log").write_text("begun\nended\n")
    assert "job.log" not in Bundle.open(root).names


@pytest.mark.parametrize("within", ["suite", "other"])
def test_each_catalogue_is_copied(suite: Suite, tmp_path: Path, within: str) -> None:
    """A second one of the same run has a number."""
    folder = suite("def test_it(sev_host): pass")
    if within == "other":
        other = folder / "other"
        other.mkdir()
        (other / "requirements.toml").write_text(CATALOGUE.replace("The first.", "Another."))
        (other / "test_other.py").write_text((folder / "test_it.py").read_text())
    run_in(folder, "--sev-host=model", f"--sev-artifacts={tmp_path / 'bundle'}")
    copies = {"suite": ["requirements.toml"], "other": ["requirements-2.toml", "requirements.toml"]}
    bundle = Bundle.open(tmp_path / "bundle")
    assert [name for name in bundle.names if name.startswith("requirements")] == copies[within]


def test_a_run_that_judged_nothing_leaves_no_bundle(suite: Suite, tmp_path: Path) -> None:
    """After a file that cannot be collected, the same directory can be given again."""
    root = tmp_path / "bundle"
    folder = suite("def test_it(sev_host) pass")
    done = run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    (folder / "test_it.py").write_text("def test_it(sev_host): pass")
    done = run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    assert done.returncode == 0, done.stderr
    assert len(Bundle.open(root).results) == 1


@pytest.mark.parametrize("kind", ["failed", "error", "skipped", "undecided", "unexpected pass"])
def test_outcomes_are_those_of_the_run(suite: Suite, tmp_path: Path, kind: str) -> None:
    """Each kind of outcome, its reason on one line, and whether it was the rig."""
    bodies: dict[str, tuple[str, str, bool]] = {
        "failed": ("assert 1 == 2", "assert 1 == 2", False),
        "error": ("raise EvidenceError('a\\x1b[31m\\nb')", r"EvidenceError: a\x1b[31m", True),
        "skipped": ("pytest.skip('not\\there')", "not", False),
        "undecided": ("raise Undecided('too early')", "Undecided: too early", False),
        "unexpected pass": ("pass", "passed all the same: known defect: it hangs (commit 1)", False),
    }
    body, why, rig = bodies[kind]
    mark = (
        "@pytest.mark.xfail(reason='known defect: it hangs (commit 1)')\n"
        if kind == "unexpected pass"
        else ""
    )
    top = "from pytest_seves.errors import EvidenceError, Undecided\n"
    folder = suite(f"{top}{mark}def test_it(sev_host):\n    {body}\n")
    run_in(folder, "--sev-host=model", f"--sev-artifacts={tmp_path / 'bundle'}")
    (result,) = Bundle.open(tmp_path / "bundle").results
    assert (result.outcome, result.rig, result.host) == (kind, rig, "model")
    assert result.why.startswith(why)
    assert "\n" not in result.why
    schema("result").validate(_line(tmp_path / "bundle"))


def _line(root: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((root / "results.jsonl").read_text())
    return line


def test_evidence_that_cannot_be_written_is_no_verdict(suite: Suite, tmp_path: Path) -> None:
    """A file stands where the launches would go: an error of the rig, which names the place."""
    root = tmp_path / "bundle"
    lines = ("PLACE.mkdir()", "(PLACE / 'launches').touch()", "launch_guest()")
    body = "\n    ".join(["def test_it(launch_guest):", *lines])
    folder = suite(f"import pathlib\nPLACE = pathlib.Path({str(root / 'model')!r})\n" + body)
    done = run_in(folder, "--sev-host=model", f"--sev-artifacts={root}")
    assert "1 error" in done.stdout, done.stdout
    assert "evidence cannot be written: [Errno 20] Not a directory" in done.stdout
    assert Bundle.open(root).results[0].rig


def test_a_crashed_worker_is_an_error_of_the_rig(suite: Suite, tmp_path: Path) -> None:
    """Its test has no teardown, and its line all the same."""
    folder = suite("import os, signal\ndef test_it(sev_host): os.kill(os.getpid(), signal.SIGKILL)\n")
    run_in(folder, "--sev-host=model", "-n1", f"--sev-artifacts={tmp_path / 'bundle'}")
    (result,) = Bundle.open(tmp_path / "bundle").results
    assert (result.outcome, result.rig) == ("error", True)


def test_the_check_leaves_a_place_for_the_run(suite: Suite, tmp_path: Path) -> None:
    """``--sev-check`` with ``--sev-artifacts`` writes its table there, and a run may follow."""
    folder, root = suite("def test_it(sev_host): pass"), tmp_path / "bundle"
    for more in (["--sev-check"], []):
        done = run_in(folder, "--sev-host=model", f"--sev-artifacts={root}", *more)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "model/readiness.json" in Bundle.open(root).names
    with pytest.raises(EvidenceError, match="wanted the directory"):
        Bundle.open(root / "none")
