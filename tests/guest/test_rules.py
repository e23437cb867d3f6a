# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults and defects: names, and rules that the recorder takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pytest_seves.agent import qmp_sabotage, sabotage
from pytest_seves.errors import UsageError
from pytest_seves.guest import defects
from pytest_seves.guest.defects import DEFECTS, chosen_defects, kernel_settings
from pytest_seves.guest.faults import FAULTS, fault_rules
from pytest_seves.guest.kernel_defects import KERNEL_DEFECTS
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.model.profiles import NAMES as PROFILES
from pytest_seves.model.profiles import resolve

#: A guest with something in it for every defect that does not heed what it is told.
ASKED = GuestSpec.of(
    firmware="/own.fd",
    machine={"kernel-irqchip": "off"},
    extra=["-device", "virtio-mem-pci,memdev=x"],
    kernel="/vmlinuz",
    kernel_hashes=True,
)


def test_an_unknown_defect_lists_those_there_are() -> None:
    """A misspelt --sev-defect shows every defect with what it does."""
    with pytest.raises(UsageError, match=r"no defect 'vmsa'; there are:\n  es-init-as-init: initialises"):
        chosen_defects(("vmsa",))


def test_an_unknown_fault_lists_those_there_are() -> None:
    """A misspelt fault names the known ones."""
    with pytest.raises(UsageError, match="no fault 'x'; there are platform-without-es"):
        fault_rules(("x",))


@pytest.mark.parametrize("name", DEFECTS)
def test_the_recorder_takes_every_defect(name: str) -> None:
    """Each defect is made of rules that the agent knows, of what a VMM heeds, or of settings of the model."""
    defect = DEFECTS[name]
    rules, qmp_rules = [dict(rule) for rule in defect.rules], [dict(rule) for rule in defect.qmp_rules]
    assert len(sabotage.load(rules)) == len(rules)
    assert len(qmp_sabotage.load(qmp_rules)) == len(qmp_rules)
    assert rules or qmp_rules or defect.kernel or defect.heeded(ASKED) != ASKED


def test_a_device_that_is_left_out() -> None:
    """A defect takes away its own device with its value, and no other argument."""
    spec = GuestSpec.of(extra=["-snapshot", "-device", "edu", "-device", "virtio-mem-pci,memdev=x", "-S"])
    heeded = DEFECTS["discard-device-left-out"].heeded(spec)
    assert heeded.extra == ("-snapshot", "-device", "edu", "-S")


def test_no_name_stands_for_two_defects() -> None:
    """A kernel defect has a name of its own, beside those of VMMs."""
    assert len(DEFECTS) == len(defects._ALL) + len(KERNEL_DEFECTS)


@pytest.mark.parametrize("name", KERNEL_DEFECTS)
def test_the_model_knows_every_kernel_defect(name: str) -> None:
    """Each is one setting, which some profile does not have by itself; others may only make room for it."""
    setting, *_ = DEFECTS[name].kernel
    wrong = [resolve(f"{profile}:{kernel_settings((name,))}") for profile in PROFILES]
    assert {getattr(profile, setting) for profile in wrong} == {True}
    assert False in {getattr(resolve(profile), setting) for profile in PROFILES}


@pytest.mark.parametrize("name", FAULTS)
def test_the_recorder_takes_every_fault(name: str) -> None:
    """Each fault is made of rules that the recorder knows."""
    assert sabotage.load([dict(rule) for rule in FAULTS[name]])


def test_catalogue_and_defects_agree(project: Path) -> None:
    """Every requirement names a defect, every such defect exists and breaks it, and none is left over."""
    entries = tomllib.loads((project / "suites/requirements.toml").read_text())["requirement"]
    named = {(name, entry["id"]) for entry in entries for name in entry["defects"]}
    assert [entry["id"] for entry in entries if not entry["defects"]] == []
    assert named <= {(defect.name, broken) for defect in DEFECTS.values() for broken in defect.breaks}
    assert {name for name, _ in named} == set(DEFECTS)
