# SPDX-License-Identifier: GPL-2.0-or-later
"""Levels and verdicts of a report: whatever was left out, broken or made wrong speaks against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_seves.errors import EvidenceError, UsageError
from pytest_seves.evidence.bundle import Bundle
from pytest_seves.report import qualify
from pytest_seves.report.qualification import MODEL
from tests.report import bundles
from tests.report.conftest import Make

Json = dict[str, Any]
ONE, TWO, OLD, NEW, THREE = bundles.TESTS


def levels(report: Json, host: str = "lab1") -> dict[str, bool]:
    """Whether each was reached."""
    return {level["name"]: level["reached"] for level in report["hosts"][host]["levels"]}


def against(report: Json, level: str = "ES-Full", host: str = "lab1") -> str:
    """What stands against a level."""
    told = next(e for e in report["hosts"][host]["levels"] if e["name"] == level)["against"]
    return "\n".join(f"{entry['id']}: {entry['why']}" if entry["id"] else entry["why"] for entry in told)


def lines(changed: int, **changes: Any) -> list[Json]:
    """Results of a whole run, one of them changed."""
    own = bundles.results()
    own[changed] |= changes
    return own


def test_a_whole_run_without_a_fault_reaches_every_level(make: Make) -> None:
    """Everything passed or does not apply: both levels are reached, and nothing is stamped."""
    report = make()
    assert levels(report) == {"ES-Launch": True, "ES-Full": True}
    assert (report["stamps"], report["hosts"]["lab1"]["against"]) == ([], [])
    assert {r["id"]: r["verdict"] for r in report["hosts"]["lab1"]["requirements"]} == {
        "X-1": "passed",
        "X-2": "passed",
        "Y-1": "passed",
    }


def test_the_document_fits_its_schema(make: Make, project: Path) -> None:
    """As another implementation of JSON Schema reads it."""
    schema = json.loads((project / "pytest_seves/report/schemas/report.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(make(), schema)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("failed", "X-1: 1 failed"),
        ("error", "X-1: 1 error"),
        ("undecided", "X-1: 1 undecided"),
        ("known defect", "X-1: 1 known defect"),
        ("blocked", "X-1: 1 blocked"),
        ("skipped", "X-1: 1 not explained"),
    ],
)
def test_one_case_of_a_must_decides(make: Make, outcome: str, said: str) -> None:
    """A single case that did not pass keeps both levels from being reached, and is named."""
    report = make(lines=lines(0, outcome=outcome, why="so it is"))
    assert levels(report) == {"ES-Launch": False, "ES-Full": False}
    assert against(report) == said


def test_a_known_defect_that_did_not_happen_is_met_and_listed(make: Make) -> None:
    """It passed: both levels are reached, and the report says what did not happen."""
    report = make(lines=lines(0, outcome="unexpected pass", why="passed all the same: known defect: d"))
    assert levels(report) == {"ES-Launch": True, "ES-Full": True}
    entry = report["hosts"]["lab1"]["requirements"][0]
    assert (entry["id"], entry["verdict"]) == ("X-1", "unexpected pass")
    assert entry["notes"] == ["passed all the same: known defect: d"]


def test_a_should_is_listed_and_decides_nothing(make: Make) -> None:
    """A should that is not met is in the report, and the level is reached."""
    report = make(lines=lines(4, outcome="failed", why="written"))
    assert levels(report) == {"ES-Launch": True, "ES-Full": True}
    assert [level["should"] for level in report["hosts"]["lab1"]["levels"]] == [
        [{"id": "Y-1", "why": ["1 failed"]}]
    ] * 2


def test_a_requirement_that_does_not_apply_at_all_is_named(make: Make) -> None:
    """Where all its cases do not apply, the level is reached without it, and says so."""
    own = lines(2, outcome="skipped", why=bundles.NO_INIT2, evidence=[])
    report = make(lines=own)
    assert levels(report)["ES-Full"]
    assert report["hosts"]["lab1"]["levels"][1]["not_applicable"] == [
        {"id": "X-2", "why": [bundles.NO_INIT2]}
    ]


@pytest.mark.parametrize("vm_types", [0x1F, None], ids=["has it", "unknown"])
def test_a_reason_that_the_facts_do_not_bear_out_explains_nothing(make: Make, vm_types: int | None) -> None:
    """A skip for want of KVM_SEV_INIT2, on a kernel that has it or does not tell, is not explained."""
    facts = json.dumps(bundles.facts(vm_types=vm_types))
    report = make(files={"lab1/facts.json": facts})
    assert against(report) == "X-2: 1 not explained"


def test_a_reason_that_the_run_contradicts_explains_nothing(make: Make) -> None:
    """A VMM that is said to have no INIT2, where a guest of INIT2 ran in the same run."""
    own = bundles.results()
    own[1]["parameters"] = bundles.guest(2, "INIT2")
    own[3]["why"] = "this VMM has no KVM_SEV_INIT2: its sev-guest has no legacy-vm-type"
    assert against(make(lines=own)) == "X-2: 1 not explained"


def test_a_test_that_was_left_out_is_missed(make: Make) -> None:
    """-k, a path, --ignore or -x: what a whole run has and this one has not is no pass."""
    report = make(lines=bundles.results()[1:])
    assert against(report, "ES-Launch") == "X-1: 1 not run"
    assert [
        entry["tests"] for entry in report["hosts"]["lab1"]["not_run"] if entry["outcome"] == "not run"
    ] == [[ONE]]


def test_a_requirement_without_any_test_is_missed(make: Make) -> None:
    """A catalogue with a must that no test decides reaches nothing that names it."""
    tests = {test: name for test, name in bundles.TESTS.items() if name != "X-2"}
    own = [line for line in bundles.results() if line["requirement"] != "X-2"]
    report = make(lines=own, files={"suite.json": bundles.plan(tests)})
    assert levels(report) == {"ES-Launch": True, "ES-Full": False}
    assert against(report) == "X-2: not run: no test of it was"


def test_a_pass_without_evidence_does_not_count(make: Make) -> None:
    """There is nothing to look at."""
    assert against(make(lines=lines(0, evidence=[]))) == "X-1: 1 passed without evidence"


def test_a_case_of_a_broken_rig_is_an_error_whatever_it_is_called(make: Make) -> None:
    """A result that the run itself calls the rig's is never a verdict."""
    assert against(make(lines=lines(0, rig=True))) == "X-1: 1 error"


@pytest.mark.parametrize(
    ("changes", "said", "stamp"),
    [
        ({"defects": ["vmsa-update-twice"]}, "made wrong on purpose", "MADE WRONG ON PURPOSE"),
        ({"arguments": ["--sev-replay=old"]}, "archived evidence", "REPLAYED"),
        ({"arguments": ["--sev-replay", "old"]}, "archived evidence", "REPLAYED"),
        ({"ended": None}, "did not come to its end", "INCOMPLETE"),
        ({"exit_status": 2}, "exit status 2", ""),
        ({"exit_status": None}, "exit status None", ""),
        ({"blocked": {"lab1": {"why": "rebooted", "after": 3, "of": 5}}}, "blocked: rebooted", ""),
        ({"vcpus": [1]}, "left out the vCPU counts 2", ""),
        ({"policies": [7]}, "left out the policies 0x5", ""),
    ],
)
def test_what_speaks_against_the_whole_run(make: Make, changes: Json, said: str, stamp: str) -> None:
    """Every level is out of reach, for the reason told, stamped where it changes what a page means."""
    report = make(run=bundles.about(**changes))
    assert levels(report) == {"ES-Launch": False, "ES-Full": False}
    assert said in against(report)
    assert [text for text in report["stamps"] if text.startswith(stamp or "\0")] == (
        [report["stamps"][0]] if stamp else []
    )


def test_the_model_reaches_nothing(make: Make) -> None:
    """A run on the model is stamped, however green it is."""
    host = {"model": "linux-6.1", "description": "model", "facts": "lab1/facts.json"}
    report = make(run=bundles.about(hosts={"lab1": host}))
    assert report["stamps"] == [MODEL]
    assert levels(report) == {"ES-Launch": False, "ES-Full": False}


def test_a_model_that_is_called_a_machine_is_found_out(make: Make) -> None:
    """Its own logs are in the bundle, so the run contradicts itself."""
    report = make(files={"lab1/guests.jsonl": "{}\n"})
    assert report["stamps"] == [MODEL]
    assert "calls lab1 a machine, and has the model's guests.jsonl" in against(report)


def test_one_host_does_not_answer_for_another(make: Make) -> None:
    """With a model beside a machine, each has levels of its own; a test of one is not missed on the other."""
    hosts = {
        name: {"model": model, "description": name, "facts": f"{name}/facts.json"}
        for name, model in (("lab1", None), ("model", "linux-6.1"))
    }
    tests = {f"{t}[{name}]": r for t, r in bundles.TESTS.items() for name in hosts}
    own = [dict(r, test=f"{r['test']}[{name}]") for name in hosts for r in bundles.results(name)]
    report = make(run=bundles.about(hosts=hosts), lines=own, files={"suite.json": bundles.plan(tests)})
    assert levels(report) == {"ES-Launch": True, "ES-Full": True}
    assert levels(report, "model") == {"ES-Launch": False, "ES-Full": False}
    assert report["hosts"]["lab1"]["not_run"][0]["outcome"] == "not applicable"


def test_a_host_whose_name_ends_like_another_s_misses_its_own(make: Make) -> None:
    """What was left out on `new-lab1` is missed there, not on `lab1`."""
    hosts = {n: {"model": None, "description": n, "facts": f"{n}/facts.json"} for n in ("lab1", "new-lab1")}
    tests = {f"{t}[x-{name}]": r for t, r in bundles.TESTS.items() for name in hosts}
    own = [dict(r, test=f"{r['test']}[x-{name}]") for name in hosts for r in bundles.results(name)]
    report = make(run=bundles.about(hosts=hosts), lines=own[:-1], files={"suite.json": bundles.plan(tests)})
    missed = {n: [e for e in report["hosts"][n]["not_run"] if e["outcome"] == "not run"] for n in hosts}
    assert {name: len(entries) for name, entries in missed.items()} == {"lab1": 0, "new-lab1": 1}


@pytest.mark.parametrize(
    ("name", "said"),
    [("suite.json", "no suite.json: what was left out cannot be known"), ("facts", "X-2: 1 not explained")],
)
def test_what_a_bundle_does_not_have_speaks_against_it(make: Make, name: str, said: str) -> None:
    """A plan or facts that are missing are no reason to believe."""
    report = make(files={"lab1/facts.json" if name == "facts" else name: None})
    assert said in against(report)


def test_what_is_not_known_of_the_product_says_so(make: Make) -> None:
    """A host without facts has a row for each part, without a value."""
    rows = make(files={"lab1/facts.json": None})["hosts"]["lab1"]["product"]
    assert {row["value"] for row in rows} == {None}
    assert {"CPU", "BIOS", "SEV firmware", "VMM", "Firmware image"} <= {row["what"] for row in rows}


def test_the_product_has_its_hashes(make: Make) -> None:
    """VMM and firmware image by SHA-256, the kernel by its build id."""
    facts = bundles.facts(kernel_build_id="ab" * 20, dmi={"bios_vendor": "AMI", "bios_version": "2.7"})
    rows = {
        r["what"]: r for r in make(files={"lab1/facts.json": json.dumps(facts)})["hosts"]["lab1"]["product"]
    }
    assert rows["VMM"]["hash"] == "1" * 64
    assert rows["Firmware image"]["hash"] == "2" * 64
    assert (rows["Kernel"]["hash_kind"], rows["Kernel"]["hash"]) == ("build id", "ab" * 20)
    assert rows["BIOS"]["value"] == "AMI 2.7"
    assert rows["System"]["value"] is None


def test_a_test_that_was_decided_twice_is_not_believed(make: Make) -> None:
    """A rerun that hides a failure leaves a second line."""
    own = bundles.results()
    report = make(lines=[{**own[0], "outcome": "failed", "why": "first"}, *own])
    assert "1 tests were decided more than once" in against(report)


def test_tests_that_are_none_of_the_suites_speak_against_it(make: Make) -> None:
    """A case that a whole run does not have was made by some option."""
    extra = bundles.result("suites/x/test_x.py::test_easy", "X-1", launch=0)
    assert "1 tests are none of the suites" in against(make(lines=[*bundles.results(), extra]))


def test_a_test_of_another_requirement_speaks_against_it(make: Make) -> None:
    """A result that was put under another requirement than its test decides."""
    assert "1 tests name another requirement" in against(make(lines=lines(0, requirement="X-2")))


@pytest.mark.parametrize("name", ["levels.toml", "requirements.toml", "known_defects.toml"])
def test_what_judged_is_what_the_suites_have(make: Make, name: str) -> None:
    """A catalogue that was another one while its files were hashed is told."""
    text = bundles.LEVELS if name == "levels.toml" else bundles.CATALOGUE if name.startswith("req") else ""
    report = make(files={name: f"# easier\n{text}"})
    assert f"{name} is not the one of the suites" in against(report)


def test_a_launch_with_a_defect_that_the_run_denies(make: Make) -> None:
    """A manifest tells what its launch was made wrong in."""
    assert "made wrong on purpose, and the run does not say so: vmsa-update-twice" in against(
        make(made_wrong="vmsa-update-twice")
    )


def test_a_run_without_seal_says_so(make: Make) -> None:
    """A killed run makes a report, and reaches nothing."""
    report = make(sealed=False, run=bundles.about(ended=None))
    assert report["stamps"] == ["INCOMPLETE: NOT A QUALIFICATION"]
    assert not any(levels(report).values())


def test_a_bundle_without_levels_reaches_nothing(make: Make) -> None:
    """There is nothing to reach."""
    assert make(files={"levels.toml": None})["hosts"]["lab1"]["levels"] == []


@pytest.mark.parametrize("name", ["levels.toml", "requirements.toml", "suite.json"])
def test_a_broken_file_is_named(make: Make, name: str) -> None:
    """Nothing is half-read."""
    with pytest.raises(EvidenceError, match=name):
        make(files={name: "[[["})


def test_no_report_inside_the_bundle(tmp_path: Path) -> None:
    """It would change what it speaks of."""
    root = bundles.write(tmp_path / "bundle")
    with pytest.raises(UsageError, match="not written into the bundle"):
        qualify.write(Bundle.open(root), root / "report", None)
    assert not (root / "report").exists()


def test_the_matrix_has_the_worst_of_each_cell(make: Make) -> None:
    """A column for each guest that was asked for, one for all others."""
    host = make(lines=lines(1, outcome="failed", why="no"))["hosts"]["lab1"]
    assert [(c["policy_name"], c["init_path"], c["vcpus"]) for c in host["columns"]] == [
        ("ES+NODBG", "own", 1),
        ("ES+NODBG", "own", 2),
        (None, None, None),
    ]
    assert {row["id"]: row["cells"] for row in host["requirements"]} == {
        "X-1": ["passed", "failed", None],
        "X-2": [None, None, "passed"],
        "Y-1": [None, None, "passed"],
    }


def test_a_drawn_launch_has_every_call(make: Make) -> None:
    """Each recorded ioctl, in its lane, a failed one with its answer."""
    launch = make()["launch"]
    assert launch["lanes"] == ["/dev/kvm", "VM", "vCPU 0", "vCPU 1"]
    names = [call["name"] for call in launch["calls"]]
    assert names.count("KVM_CREATE_VCPU") == names.count("KVM_RUN") == 2
    assert [call["answer"] for call in launch["calls"] if call["failed"]] == ["EIO, 0x04 INVALID_LEN"]


def test_a_cell_passes_only_where_something_passed(make: Make) -> None:
    """The matrix shows where a case does not apply, beside the one that passed."""
    own = bundles.results()
    own[3]["parameters"] = bundles.guest(2)
    row = next(r for r in make(lines=own)["hosts"]["lab1"]["requirements"] if r["id"] == "X-2")
    assert row["cells"] == [None, "not applicable", "passed"]
