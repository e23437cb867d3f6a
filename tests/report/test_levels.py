# SPDX-License-Identifier: GPL-2.0-or-later
"""levels.toml: what is wrong in it is named, and the one beside the suites is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_seves.errors import UsageError
from pytest_seves.report import catalogue, levels
from tests.report import bundles

KNOWN = catalogue.parse_requirements(bundles.CATALOGUE, "requirements.toml")
LEVEL = '[[level]]\nname = "A"\nsentence = "s"\nrequirements = ["X-1"]\nvcpus = [1]\npolicies = [5]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[level", "cannot be read"),
        ("[[grade]]\n", "nothing but"),
        ("level = [1]\n", "nothing but"),
        (LEVEL + "colour = 1\n", "A: unknown key colour"),
        (LEVEL + LEVEL, "A: wanted a name of its own"),
        (LEVEL.replace('name = "A"\n', ""), "wanted a name of its own"),
        (LEVEL.replace("X-1", "X-9"), "A: the catalogue has no X-9"),
        (LEVEL.replace('"X-1"', '"X-1", "X-1"'), "named twice.*X-1"),
        (LEVEL + LEVEL.replace('"A"', '"B"') + 'includes = "A"\n', "B: named twice.*X-1"),
        (LEVEL + 'includes = "B"\n', "A: includes 'B': wanted a level above it"),
        (LEVEL + 'every = "should"\n', "A: every = 'should': wanted 'must'"),
        (LEVEL.replace("[1]", "[true]"), "wanted a list of numbers"),
        (LEVEL.replace("[5]", "[]"), "wanted a sentence, requirements, vcpus and policies"),
        ('[[reason]]\nwhy = " "\nfact = "vmm-without-init2"\n', "a reason: wanted why and fact"),
        ('[[reason]]\nwhy = "x"\n', "a reason: wanted why and fact"),
        ('[[reason]]\nwhy = "x"\nfact = "because"\n', "fact 'because': there are"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    """A level that does not say what it is made of is refused, with the file's name."""
    with pytest.raises(UsageError, match=rf"(?s)levels\.toml: .*{said}"):
        levels.parse(text, "levels.toml", KNOWN)


def test_a_level_holds_what_it_includes() -> None:
    """A level has all requirements, counts and policies of the one that it includes, and every must."""
    launch, full = levels.parse(bundles.LEVELS, "levels.toml", KNOWN).levels
    assert launch.requirements == ("X-1", "Y-1")
    assert full.requirements == ("X-1", "Y-1", "X-2")
    assert (full.vcpus, full.policies) == (launch.vcpus, launch.policies) == ((1, 2), (5,))


def test_the_levels_of_the_suites(project: Path) -> None:
    """Three levels, each a subset of the next, the last with every must of the catalogue."""
    known = catalogue.load(project / "suites" / "requirements.toml")
    text = (project / "suites" / "levels.toml").read_text()
    launch, boot, full = levels.parse(text, "levels.toml", known).levels
    assert (launch.name, boot.name, full.name) == ("ES-Launch", "ES-Boot", "ES-Full")
    assert set(launch.requirements) < set(boot.requirements) < set(full.requirements)
    assert {name for name, told in known.items() if told.level == "must"} <= set(full.requirements)


def test_every_reason_of_the_suites_is_one_that_they_give(project: Path) -> None:
    """A reason in levels.toml is part of a text in the code: one that nothing says explains nothing."""
    known = catalogue.load(project / "suites" / "requirements.toml")
    text = (project / "suites" / "levels.toml").read_text()
    sources = [*(project / "suites").rglob("*.py"), *(project / "pytest_seves" / "guest").rglob("*.py")]
    said = "".join(file.read_text() for file in sources)
    for reason in levels.parse(text, "levels.toml", known).reasons:
        assert reason.why in said
