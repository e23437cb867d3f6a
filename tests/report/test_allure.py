# SPDX-License-Identifier: GPL-2.0-or-later
"""Allure results of real runs, and the pages that the real Allure makes of them, in a real browser."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.report import allure_files
from tests.hostile import conftest as hostile
from tests.test_xdist import Session

PACKAGES = ("allure@3.18", "playwright-core@1.65")
PAGES = Path(__file__).with_name("allure_pages.mjs")
PHASES = [
    "VM created",
    "initialised",
    "vCPUs created",
    "data measured",
    "VMSA measured",
    "measured",
    "finished",
]
PHASES += ["running", "ended"]


@pytest.fixture(scope="module")
def two_hosts(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run on two hosts, by two workers, with a VMM that measures vCPUs twice."""
    folder = tmp_path_factory.mktemp("allure")
    options = ["-n", "2", f"--alluredir={folder}/results", "--sev-defect", "vmsa-update-twice"]
    run = Session(project, folder, ["east", "west"], options)
    assert run.status == pytest.ExitCode.TESTS_FAILED, run.output
    return folder / "results"


def read(folder: Path) -> list[dict[str, Any]]:
    """All results."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*-result.json"))]


def labels(result: dict[str, Any], name: str) -> list[str]:
    """Values of one label."""
    return [label["value"] for label in result["labels"] if label["name"] == name]


def one(results: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The result of that test."""
    (found,) = (result for result in results if result["name"] == name)
    return found


def test_a_result_carries_all_that_is_known(two_hosts: Path) -> None:
    """Requirement, host and guest; the catalogue's words; the steps of its launch."""
    failed = one(read(two_hosts), "test_no_vcpu_is_measured_twice[3vcpu-ES+NODBG-west]")
    assert failed["status"] == "failed"
    assert "KVM_SEV_LAUNCH_UPDATE_VMSA" in failed["statusDetails"]["message"]
    assert {p["name"]: p["value"] for p in failed["parameters"]} == {
        "requirement": "VMSA-3",
        "host": "west",
        "vCPUs": "3",
        "policy": "ES+NODBG",
        "init path": "own",
    }
    assert labels(failed, "epic") == ["VMSA"]
    assert labels(failed, "feature") == ["VMSA-3 LAUNCH_UPDATE_VMSA measures each vCPU exactly once."]
    assert labels(failed, "host") == labels(failed, "parentSuite") == ["west"]
    assert labels(failed, "severity") == ["critical"]
    assert sorted(labels(failed, "tag")) == ["model", "must"]
    assert failed["titlePath"][0] == "west"
    assert allure_files.MODEL in failed["description"]
    assert "https://git.kernel.org/linus/9b9f7962e3e8" in [link["url"] for link in failed["links"]]
    (launch,) = failed["steps"]
    assert launch["name"] == "launch of 3vcpu-ES+NODBG: exit status 0"
    assert [step["name"].partition(":")[0] for step in launch["steps"]][:9] == PHASES
    begun = [step["start"] for step in launch["steps"]]
    assert begun == sorted(begun)
    assert all(step["start"] <= step["stop"] for step in launch["steps"])
    assert "KVM_SEV_LAUNCH_UPDATE_VMSA, 2 times" in launch["steps"][4]["name"]


def test_each_launch_has_one_archive(two_hosts: Path) -> None:
    """However many tests it serves: the first one has it, the others say so, and there are no other files."""
    results = read(two_hosts)
    launches = [(result, step) for result in results for step in result.get("steps", ())]
    used = {step["attachments"][0]["source"]: result for result, step in launches if step.get("attachments")}
    assert {file.name for file in two_hosts.glob("*-attachment*")} == set(used)
    assert len(used) * 3 < len(launches)
    names = {result["name"] for result in used.values()}
    for result, step in launches:
        last = step["steps"][-1]["name"]
        assert step.get("attachments") or last.rpartition("::")[2] in names - {result["name"]}
    for name in used:
        with zipfile.ZipFile(two_hosts / name) as archive:
            assert archive.testzip() is None
            assert {"launch.json", "timeline.jsonl", "qmp.txt", "console.raw"} <= set(archive.namelist())


def test_hosts_have_histories_of_their_own(two_hosts: Path) -> None:
    """No two results are taken for runs of the same test; the same test has the same history again."""
    results = read(two_hosts)
    assert len({result["historyId"] for result in results}) == len(results)
    hosts = Counter(labels(result, "host")[0] for result in results)
    assert hosts["east"] == hosts["west"] > 10


def test_known_defects_and_skips_say_so(two_hosts: Path) -> None:
    """A known defect is skipped, known, and leads to its reference; a skip is not known."""
    skipped = [result for result in read(two_hosts) if result["status"] == "skipped"]
    known = [result for result in skipped if result["statusDetails"].get("known")]
    assert known
    assert all(result["statusDetails"]["message"].startswith("known defect: ") for result in known)
    assert {link["url"] for link in known[0]["links"] if link["type"] == "issue"} == {
        "https://gitlab.com/qemu-project/qemu/-/commit/5c3131c392"
    }


def test_the_run_is_described(two_hosts: Path) -> None:
    """Environment of each host, categories in our words, and what the run is not."""
    environment = (two_hosts / "environment.properties").read_text()
    for told in ("east.kernel = 6.1", "west.VMM = QEMU", f"qualification = none. {allure_files.MODEL}"):
        assert told in environment
    assert json.loads((two_hosts / "categories.json").read_text()) == allure_files.CATEGORIES
    assert allure_files.MODEL in json.loads((two_hosts / "allurerc.json").read_text())["name"]


@pytest.mark.parametrize("options", [[], ["-p", "no:allure_pytest"]], ids=["unused", "not there"])
def test_without_allure_nothing_of_it_is_loaded(pytester: pytest.Pytester, options: list[str]) -> None:
    """It costs nothing where nobody asked for results, or it is not installed."""
    pytester.makepyfile(
        """
        import sys
        def test_it():
            assert "pytest_seves.allure_results" not in sys.modules
        """
    )
    pytester.runpytest_subprocess("--sev-host", "model", *options).assert_outcomes(passed=1)


def test_a_test_that_its_worker_died_of_has_a_result(pytester: pytest.Pytester) -> None:
    """An error, made by the controller."""
    pytester.makepyfile(
        """
        import os
        def test_it(sev_host):
            os._exit(1)
        """
    )
    pytester.runpytest_subprocess("--sev-host", "model", "-n", "1", "--alluredir=results")
    (result,) = read(pytester.path / "results")
    assert (result["status"], result["name"]) == ("broken", "test_it")
    assert result["statusDetails"]["message"].startswith("error: worker 'gw0' crashed")


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("a\nb = c", r"x = a\\nb = c"),
        ("\\u0041\x1b", r"x = \\u0041\\x1b"),
        ("gr\xfcn", r"x = gr\\xfcn"),
        ("</script>", "x = </script>"),
    ],
)
def test_a_property_is_one_line(value: str, line: str) -> None:
    """What a host says makes no property of its own."""
    assert allure_files.files({"x": value}, False)["environment.properties"] == f"{line}\n"


@pytest.fixture(scope="module")
def node() -> Path:
    """A directory where Node.js finds Allure and a driver for the browser, kept from run to run."""
    for program in ("npm", "node", "chromium"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: Allure's pages cannot be made and looked at")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "pytest-seves" / "-".join(name.replace("@", "-") for name in PACKAGES)
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        argv = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"--prefix={folder}"]
        argv += PACKAGES
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"no {PACKAGES[0]} from the npm registry: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "whole").touch()
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The directory on a port of loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


def _page(pages: Path, name: str) -> str | None:
    """The page of a test, by its name; branches of the tree are folded."""
    tests = (json.loads(file.read_text()) for file in pages.rglob("test-results/*.json"))
    return next((f"#{test['id']}" for test in tests if test["name"] == name), None)


def look(node: Path, results: Path, folder: Path, *clicks: str) -> dict[str, Any]:
    """What the report of these results shows, at first and after each click."""
    pages = folder / "report"
    shutil.rmtree(pages, ignore_errors=True)
    allure = [str(node / "node_modules/.bin/allure"), "generate", f"--config={results / 'allurerc.json'}"]
    argv = [*allure, str(results), f"--output={pages}"]
    subprocess.run(argv, cwd=folder, capture_output=True, timeout=120, check=True)
    with served(pages) as url:
        found = next(pages.rglob("index.html")).parent.relative_to(pages)
        address = url if str(found) == "." else f"{url}{found}/"
        argv = ["node", str(PAGES), shutil.which("chromium") or "", address, str(folder)]
        argv += [_page(pages, click) or click for click in clicks]
        done = subprocess.run(argv, cwd=node, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_the_pages_tell_it(node: Path, two_hosts: Path, tmp_path: Path) -> None:
    """The stamp, the hosts, the words of our categories; a failed test with guest, phases and archive."""
    name = "test_no_vcpu_is_measured_twice[3vcpu-ES+NODBG-west]"
    results = read(two_hosts)
    told = look(node, two_hosts, tmp_path, name, "launch of 3vcpu")
    assert (told["dialogs"], told["errors"], told["foreign"]) == ([], [], [])
    overview, page, steps = (seen["text"] for seen in told["seen"])
    counts = Counter(result["status"] for result in results)
    assert allure_files.MODEL in overview
    for status, count in counts.items():
        assert f"{status.capitalize()}\n{count}" in overview
    for shown in (name, "Category: Failed: the product is wrong", "ES+NODBG", "VMSA-3"):
        assert shown in page
    for shown in (*PHASES, "evidence: attached to suites/"):
        assert shown in steps
    with_archive = (r for r in results for step in r.get("steps", ()) if step.get("attachments"))
    first = next(r["name"] for r in with_archive if r["status"] == "passed")
    opened = look(node, two_hosts, tmp_path, first, "launch of")["seen"][-1]["text"]
    assert "evidence, " in opened
    assert "missed" not in opened


def test_hostile_text_is_text_on_the_pages(node: Path, tmp_path: Path) -> None:
    """No script of a guest runs, and none is there: the page has those that it had."""
    tmp_path.joinpath("run").mkdir()
    harmed = hostile.run(tmp_path / "run", options=["--alluredir=allure"])
    told = look(node, harmed.path / "allure", tmp_path, "test_printed", "Attachments")
    assert (told["dialogs"], told["errors"], told["foreign"]) == ([], [], [])
    assert "<script>alert(1)</script>" in told["seen"][1]["text"]
    assert {seen["scripts"] for seen in told["seen"]} == {told["seen"][0]["scripts"]}
    assert {seen["handlers"] for seen in told["seen"]} == {0}
