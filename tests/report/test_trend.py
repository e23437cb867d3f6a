# SPDX-License-Identifier: GPL-2.0-or-later
"""``pytest-seves trend``: what changed from run to run, and what did not."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.cli import main
from pytest_seves.errors import EvidenceError
from pytest_seves.report import trend
from pytest_seves.spec import kvm
from tests.evidence import recording
from tests.report import bundles

Json = dict[str, Any]
ONE, TWO, *_ = bundles.TESTS


def run(folder: Path, day: int, bad: dict[int, str] | None = None, **changes: Any) -> trend.RunRead:
    """A run on a day of November; `bad` are outcomes by the place of a result."""
    lines = bundles.results()
    for place, outcome in (bad or {}).items():
        lines[place] |= {"outcome": outcome, "why": "so it is"}
    about = bundles.about(run=f"run-{day}", started=f"2026-11-{day:02}T10:00:00+00:00")
    return trend.read(bundles.write(folder / f"run-{day}", run=about, lines=lines, **changes))


def slow(factor: int) -> bytes:
    """A recording whose times are so many times as long."""
    lines = [json.loads(line) for line in recording.jsonl(recording.launch(2)).splitlines()]
    for line in lines:
        if "t" in line:
            line["t"] *= factor
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def test_runs_are_in_the_order_of_time(tmp_path: Path) -> None:
    """Whatever order they are given in."""
    page = trend.page([run(tmp_path, 9), run(tmp_path, 3), run(tmp_path, 6)]).decode()
    assert page.index("run-3") < page.index("run-6") < page.index("run-9")
    assert "Trend of 3 runs" in page


def test_a_run_that_is_given_twice_is_one(tmp_path: Path) -> None:
    """As when a pattern finds a report and its bundle: otherwise it would be its own flake."""
    one, two = run(tmp_path, 1, {0: "failed"}), run(tmp_path, 2)
    assert "Trend of 2 runs" in trend.page([one, two, one]).decode()


def test_a_flake_is_a_bad_outcome_on_the_same_product(tmp_path: Path) -> None:
    """The same host, kernel, firmware and VMM, and two outcomes: named with the runs in which it was bad."""
    runs = [
        run(tmp_path, 1),
        run(tmp_path, 2, {1: "failed"}),
        run(tmp_path, 3),
        run(tmp_path, 4, {1: "undecided"}),
    ]
    assert trend._flakes(runs) == [
        {"host": "lab1", "test": TWO, "bad": 2, "of": 4, "told": "failed in 2, undecided in 4"}
    ]
    page = trend.page(runs).decode()
    assert "failed in 2, undecided in 4" in page
    assert [entry["verdicts"] for entry in trend._changes(runs)] == [
        ["passed", "failed", "passed", "undecided"]
    ]


def test_another_product_is_no_flake(tmp_path: Path) -> None:
    """A verdict that changed with the kernel is a change of verdicts, and the product's change is told."""
    other = bundles.facts(uname={"release": "6.12.1", "version": "#1"})
    files: dict[str, str | bytes | None] = {"lab1/facts.json": json.dumps(other)}
    runs = [run(tmp_path, 1), run(tmp_path, 2, {0: "failed"}, files=files)]
    assert trend._flakes(runs) == []
    assert [(c["run"], c["what"], c["now"]) for c in trend._product_changes(runs, "lab1")] == [
        (2, "Kernel", "6.12.1 #1")
    ]
    assert [entry["id"] for entry in trend._changes(runs)] == ["X-1"]


def test_a_test_that_never_passes_is_no_flake(tmp_path: Path) -> None:
    """It is a bug."""
    runs = [run(tmp_path, day, {0: "failed"}) for day in (1, 2)]
    assert (trend._flakes(runs), trend._changes(runs)) == ([], [])


def test_launch_times_are_the_recording_s(tmp_path: Path) -> None:
    """From the first call to the first KVM_RUN, by vCPU count; the plot has a line for each."""
    usual, slower = run(tmp_path, 1, timeline=slow(1000)), run(tmp_path, 2, timeline=slow(5000))
    (times,) = usual.launch_ms.values()
    first_run = len(recording.launch(2)) - 2
    assert list(usual.launch_ms) == [("lab1", 2)]
    assert list(times) == [pytest.approx(100 * first_run * 1000 / 1e6)] * 2
    page = trend.page([usual, slower]).decode()
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    parsed = ET.fromstring(svg)
    assert {tag.tag.rpartition("}")[2] for tag in parsed.iter()} <= {
        "svg",
        "g",
        "rect",
        "text",
        "line",
        "path",
        "circle",
    }
    assert "2 vCPU" in svg
    assert f"{100 * first_run * 5000 / 1e6:.1f}" in page


def test_a_report_s_directory_will_do(tmp_path: Path) -> None:
    """The bundle is below it."""
    bundles.write(tmp_path / "report" / "evidence")
    assert trend.read(tmp_path / "report").run == "20261124-1"


def test_a_run_of_the_model_or_with_a_defect_is_marked(tmp_path: Path) -> None:
    """So that nobody takes it for another."""
    about = bundles.about(defects=["vmsa-update-twice"])
    read = trend.read(bundles.write(tmp_path / "b", run=about))
    assert read.stamps == ("defect: vmsa-update-twice",)
    assert "defect: vmsa-update-twice" in trend.page([read]).decode()


def test_a_run_that_was_killed_is_there_and_marked(tmp_path: Path) -> None:
    """What it came to is still a run."""
    read = trend.read(bundles.write(tmp_path / "b", run=bundles.about(ended=None), sealed=False))
    assert "incomplete: it did not come to its end" in trend.page([read]).decode()


def test_what_is_no_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no page is written."""
    bundles.write(tmp_path / "good")
    assert (
        main(["trend", str(tmp_path / "good"), str(tmp_path / "none"), "--output", str(tmp_path / "t.html")])
        == 1
    )
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "t.html").exists()


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    """Nothing is half-read."""
    root = bundles.write(
        tmp_path / "b", timeline=f'{{"format": "x"}}\n{{"t": "now", "req": {kvm.KVM_RUN}}}\n'.encode()
    )
    with pytest.raises(EvidenceError, match=r"timeline\.jsonl"):
        trend.read(root)


def test_the_plots_are_drawn_without_a_screen_or_a_font(tmp_path: Path) -> None:
    """The command, in a process of its own, imports nothing of numpy's size."""
    root = bundles.write(tmp_path / "b")
    program = (
        "import sys; from pytest_seves.cli import main;"
        f"main(['trend', {str(root)!r}, '--output', {str(tmp_path / 't.html')!r}]);"
        "print(sorted(set(sys.modules) & {'numpy', 'matplotlib', 'pytest'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")
