# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests asked for in an earlier run is asked for ahead of them, and changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_seves.model.host import ModelHost

TESTS = """
from pytest_seves.guest.calls import open_kvm

def test_first(launch_guest):
    assert launch_guest().exit.status == 0

def test_calls(kvm):
    assert kvm(open_kvm())[0].errno is None

def test_alone(launch_guest):
    with launch_guest.alone() as alone:
        assert alone(policy=None).usage

def test_launch(launch_guest):
    assert len(launch_guest(vcpus={vcpus}).timeline.created_vcpus) == {vcpus}

def test_the_same(launch_guest):
    assert launch_guest(vcpus={vcpus}).exit.status == 0

def test_file(launch_guest):
    launch_guest.put("first", b"")
    launch_guest(firmware=launch_guest.put("second", b""), policy=None)
"""
#: Writes down what is asked for, with a mark where that is ahead.
CONFTEST = """
from pytest_seves.host.client import AgentClient

ask = AgentClient.ask

def told(self, op, args=None, *, ahead=False):
    if op in ("observe", "calls"):
        with open("asked", "a") as file:
            file.write(f"{op}{'+' if ahead else ''} ")
    return ask(self, op, args, ahead=ahead)

AgentClient.ask = told
"""
NEVER = "observe calls observe observe observe"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelHost]:
    """A host that no other run has the lease of."""
    with ModelHost.start() as host:
        yield host


@pytest.fixture
def lab(pytester: pytest.Pytester, model: ModelHost) -> pytest.Pytester:
    """A lab with the model, and tests of it."""
    pytester.mkdir("lab").joinpath("far.toml").write_text(
        f'[host]\naddress = "127.0.0.1"\nport = {model.port}\nuser = "{model.user}"\n'
        f'identity = "{model.identity}"\nhost_key = "{model.host_key}"\n'
        f'[firmware]\npath = "{model.firmware}"\n'
    )
    pytester.makeconftest(CONFTEST)
    return pytester


def asked(lab: pytest.Pytester, *options: str, vcpus: int = 2) -> str:
    """Run the tests, which all pass; what was asked for."""
    Path(lab.path / "asked").unlink(missing_ok=True)
    lab.makepyfile(TESTS.format(vcpus=vcpus))
    run = lab.runpytest_subprocess("--sev-host", "far", *options)
    run.assert_outcomes(passed=6)
    return (lab.path / "asked").read_text().strip()


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["here", "worker"])
def test_the_second_run(lab: pytest.Pytester, options: list[str]) -> None:
    """Each is asked for once; not ahead: the first, what is alone, and what names a file of this run."""
    assert asked(lab, *options) == NEVER
    assert asked(lab, *options) == "observe calls+ observe+ observe observe"
    assert asked(lab, *options, "-p", "no:cacheprovider") == NEVER
    assert asked(lab, *options, "--sev-defect", "smm-not-asked") == NEVER


def test_a_wrong_hint(lab: pytest.Pytester) -> None:
    """It costs a launch that no test sees, and the next run knows better."""
    asked(lab)
    assert asked(lab, vcpus=3) == "observe calls+ observe+ observe observe observe"
    assert asked(lab, vcpus=3) == "observe calls+ observe+ observe observe"
