# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VMM that means harm says reaches no terminal, page, parser or path as anything but text."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import xmlschema

from tests.hostile.conftest import OUTCOMES, Harmed, run
from tests.report.test_markdown import OURS, Page

SCHEMA = Path(__file__).parents[1] / "report/schemas/junit-10.xsd"
_UNPRINTABLE = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufefe\uff00-\U000e0000]"
)
#: A line that a CI runner obeys.
_COMMAND = re.compile(r"^[ \t]*(::|##\[)", re.MULTILINE)
FLOOD = """
import re
from pathlib import Path
import pytest
from pytest_seves.evidence.timeline import Stage

def test_flood(launch_guest):
    launch = launch_guest()
    assert launch.stderr.dropped > 1 << 29
    assert launch.console.size > 1 << 26
    assert len(launch.stderr.text) < 2 << 20
    # Not ru_maxrss, which a process inherits from who started it.
    peak = re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    assert int(peak[1]) < 300 << 10
    launch.reached(Stage.RUNNING)
"""


def results(harmed: Harmed) -> dict[str, dict[str, Any]]:
    """Allure results by the name of the test."""
    files = harmed.path.joinpath("allure").glob("*-result.json")
    read = [json.loads(file.read_text()) for file in files]
    return {result["name"]: result for result in read}


def test_the_run_ends_as_it_should(harmed: Harmed) -> None:
    """Each outcome is what it is; no worker died of what it was told, and the launch was made once."""
    assert harmed.status == pytest.ExitCode.TESTS_FAILED, harmed.output
    verdicts = json.loads((harmed.path / "out/verdicts.json").read_text())["model"]["requirements"]["X-1"]
    assert verdicts["counts"] == OUTCOMES
    assert "INTERNALERROR" not in harmed.output
    assert "crashed" not in harmed.output
    assert len(list(harmed.path.glob("out/model/launches/*"))) == 1


def test_the_terminal_obeys_nothing(harmed: Harmed) -> None:
    """Everything was shown, as text: no control character, no command to a CI runner."""
    assert "\\x1b[31mred" in harmed.output
    assert not _UNPRINTABLE.search(harmed.output.replace("\r\n", "\n"))
    assert not _COMMAND.search(harmed.output)
    assert "\\::error::owned" in harmed.output


def test_junit_is_valid(harmed: Harmed) -> None:
    """By the schema, with all that was captured; an error is no failure."""
    schema = xmlschema.XMLSchema(SCHEMA)
    schema.validate(harmed.path / "junit.xml")
    text = (harmed.path / "junit.xml").read_text()
    assert '<testsuite name="pytest" errors="2" failures="11" skipped="2"' in text
    assert "<script" not in text


def test_the_job_summary_has_no_markup_but_ours(harmed: Harmed) -> None:
    """As GitHub renders it."""
    told = (harmed.path / "out/summary.md").read_text()
    assert Page(told).tags <= OURS
    assert "x1b" in told


def test_allure_has_every_outcome_in_its_words(harmed: Harmed) -> None:
    """failed, broken, unknown, skipped and known; messages are text."""
    found = results(harmed)
    statuses = Counter(result["status"] for result in found.values())
    assert statuses == {"failed": 10, "broken": 2, "unknown": 1, "skipped": 2, "passed": 6}
    assert found["test_error"]["status"] == "broken"
    assert found["test_undecided"]["statusDetails"]["message"].startswith("undecided: ")
    assert found["test_known"]["statusDetails"]["known"] is True
    for file in harmed.path.joinpath("allure").iterdir():
        if file.suffix in (".json", ".txt", ".properties"):
            assert not _UNPRINTABLE.search(file.read_text()), file.name


def test_facts_of_the_host_are_text(harmed: Harmed) -> None:
    """A version that means harm is one property of the environment."""
    told = (harmed.path / "allure/environment.properties").read_text().splitlines()
    (version,) = (line for line in told if line.startswith("VMM = "))
    assert "\\\\x1b[31mred" in version
    assert all(re.match(r"[\w.-]+ = ", line) for line in told)


def test_evidence_is_where_it_belongs(harmed: Harmed) -> None:
    """No name that anybody chose is a path: nothing is beside the run, and archives unpack into one place."""
    assert not Path("/tmp/escape").exists()
    assert sorted(path.name for path in harmed.path.iterdir() if path.name != "__pycache__") == [
        "allure", "junit.xml", "lab", "out", "pytest.ini", "requirements.toml", "test_harm.py", "vmm"
    ]  # fmt: skip
    assert len(list(harmed.path.glob("out/model/calls/*.json"))) == 5
    for file in harmed.path.rglob("*"):
        assert re.fullmatch(r"[\w.+-]+", file.name), file
    (archive,) = harmed.path.glob("allure/*.zip")
    with zipfile.ZipFile(archive) as zipped:
        assert all(re.fullmatch(r"[a-z0-9-]+\.[a-z]+", name) for name in zipped.namelist())
        assert b"\x1b[31mred" in zipped.read("console.raw")
        assert not _UNPRINTABLE.search(zipped.read("console.txt").decode())


def test_a_line_of_1_gib_takes_no_memory(tmp_path: Path) -> None:
    """Whoever reads it on the host keeps its ends; no process above the VMM grows by more than 16 MiB."""
    flooded = run(tmp_path, suite=FLOOD, flood=True, options=["--color=no", "--junitxml=junit.xml"])
    assert "1 undecided" in flooded.output, flooded.output
    assert len(flooded.output) < 100_000
    assert (tmp_path / "junit.xml").stat().st_size < 100_000
    memory = json.loads((tmp_path / "memory").read_text())
    assert len(memory["after"]) > 2
    grown = {process: most - memory["before"][process] for process, most in memory["after"].items()}
    assert all(kib < 16 << 10 for kib in grown.values()), grown
    assert sum(file.stat().st_size for file in tmp_path.glob("out/model/launches/*/*")) < 8 << 20
