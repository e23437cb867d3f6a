# SPDX-License-Identifier: GPL-2.0-or-later
"""JUnit results: valid, with the properties of each test, across xdist."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import xmlschema

from pytest_seves.report.junit import obey_schema

SCHEMA = Path(__file__).with_name("schemas") / "junit-10.xsd"
CATALOGUE = '[[requirement]]\nid = "X-1"\nlevel = "should"\nsentence = "It."\nsource = "d"\n'
SUITE = """
import pytest
from pytest_seves.errors import EvidenceError, Undecided

@pytest.mark.requirement("X-1")
def test_of_a_case(launch_guest, vcpus, policy, init_path):
    launch_guest(vcpus=vcpus, policy=policy, init_path=init_path)

@pytest.mark.requirement("X-1")
def test_of_its_own_guests(launch_guest):
    launch_guest(vcpus=1)
    launch_guest(vcpus=2)
    launch_guest(vcpus=1)
    print("printed")
    assert [1] == [2]

@pytest.mark.requirement("X-1")
def test_of_no_guest(sev_host):
    raise EvidenceError("broken")

@pytest.mark.requirement("X-1")
def test_undecided(sev_host):
    raise Undecided("it ended")
"""


def properties(case: ET.Element) -> dict[str, str]:
    """As readers of JUnit files find them."""
    lines = (case.findtext("system-out") or "").splitlines()
    found = [line[len("[[PROPERTY|") : -2] for line in lines if line.startswith("[[PROPERTY|")]
    return {name: value for name, _, value in (line.partition("=") for line in found)}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_properties_survive(pytester: pytest.Pytester, workers: str) -> None:
    """Requirement, level, host, guests and evidence, valid by the schema; an error is no failure."""
    pytester.path.joinpath("requirements.toml").write_text(CATALOGUE)
    pytester.makepyfile(SUITE)
    given = ["--sev-vcpus=3", "--sev-policy=0x5", "-k", "not INIT2", "--sev-artifacts=out", "-n", workers]
    logging = ["-o", "junit_logging=all"]
    pytester.runpytest_subprocess("--sev-host", "model", "--junitxml=deep/j.xml", *given, *logging)
    file = pytester.path / "deep/j.xml"
    xmlschema.XMLSchema(SCHEMA).validate(file)
    cases = {case.get("name", ""): case for case in ET.parse(file).iter("testcase")}
    known = {"requirement": "X-1", "level": "should", "host": "model"}
    one = properties(cases["test_of_a_case[3vcpu-ES+NODBG]"])
    evidence = Path(one.pop("evidence"))
    assert one == {**known, "vcpus": "3", "policy": "ES+NODBG", "init_path": "own"}
    assert (evidence / "timeline.jsonl").is_file()
    own = properties(cases["test_of_its_own_guests"])
    assert own.pop("evidence")
    assert own == {**known, "vcpus": "1, 2", "policy": "ES+NODBG", "init_path": "own"}
    assert "printed" in (cases["test_of_its_own_guests"].findtext("system-out") or "")
    assert properties(cases["test_of_no_guest"]) == known
    kinds = {
        name: [child.tag for child in case if not child.tag.startswith("system")]
        for name, case in cases.items()
    }
    assert kinds["test_of_no_guest"] == ["error"]
    assert kinds["test_of_its_own_guests"] == kinds["test_undecided"] == ["failure"]


def test_another_family_keeps_what_pytest_wrote(pytester: pytest.Pytester) -> None:
    """xunit1 follows no schema, and has properties where most readers want them."""
    pytester.path.joinpath("requirements.toml").write_text(CATALOGUE)
    pytester.makepyfile(SUITE)
    given = ["-k", "undecided", "--junitxml=j.xml", "-o", "junit_family=xunit1"]
    pytester.runpytest_subprocess("--sev-host", "model", *given)
    (case,) = ET.parse(pytester.path / "j.xml").iter("testcase")
    found = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert found == {"requirement": "X-1", "level": "should", "host": "model"}


def test_a_file_without_properties_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is added."""
    file = tmp_path / "j.xml"
    text = (
        '<testsuites name="pytest tests"><testsuite name="p"><testcase name="a" /></testsuite></testsuites>'
    )
    file.write_text(text)
    obey_schema(file)
    assert file.read_text().partition("\n")[2] == text
