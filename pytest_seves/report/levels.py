# SPDX-License-Identifier: GPL-2.0-or-later
"""Levels of qualification, and reasons for which a case may be left out: ``levels.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pytest_seves.errors import UsageError

from .catalogue import Requirement

LEVELS = "levels.toml"
#: What a reason is held against; see :mod:`.reasons`.
FACTS = ("kernel-without-init2", "vmm-without-init2", "asked-in-evidence")


@dataclass(frozen=True)
class Level:
    """A stated set of requirements, and what they are to be judged over.

    :param requirements: ids of all of it, those of the level that it includes first.
    :param vcpus: vCPU counts that a run must have.
    :param policies: guest policies that a run must have.
    """

    name: str
    sentence: str
    requirements: tuple[str, ...]
    vcpus: tuple[int, ...]
    policies: tuple[int, ...]


@dataclass(frozen=True)
class Reason:
    """A reason for which a case does not apply.

    :param why: part of what the test says.
    :param fact: one of :data:`FACTS`.
    """

    why: str
    fact: str


@dataclass(frozen=True)
class Levels:
    """What ``levels.toml`` says."""

    levels: tuple[Level, ...]
    reasons: tuple[Reason, ...]


NONE = Levels((), ())
_LEVEL = {"name", "sentence", "includes", "requirements", "every", "vcpus", "policies"}


def parse(text: str, where: str, catalogue: Mapping[str, Requirement]) -> Levels:
    """Levels, checked against the catalogue that they speak of.

    :param where: the file's name, for messages.
    :raise UsageError: the file is malformed, or names a requirement that the catalogue lacks.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: cannot be read: {error}") from error
    entries = content.pop("level", []), content.pop("reason", [])
    if content or not all(isinstance(e, dict) for kind in entries for e in kind):
        raise UsageError(f"{where}: wanted nothing but [[level]] and [[reason]] tables")
    found: dict[str, Level] = {}
    for entry in entries[0]:
        level = _level(entry, where, found, catalogue)
        found[level.name] = level
    return Levels(tuple(found.values()), tuple(_reason(entry, where) for entry in entries[1]))


def _level(
    entry: dict[str, Any], where: str, earlier: Mapping[str, Level], catalogue: Mapping[str, Requirement]
) -> Level:
    name = str(entry.get("name", "a level without name"))
    if unknown := sorted(set(entry) - _LEVEL):
        raise UsageError(
            f"{where}: {name}: unknown key {', '.join(unknown)}; there are {', '.join(sorted(_LEVEL))}"
        )
    if name in earlier or not entry.get("name"):
        raise UsageError(f"{where}: {name}: wanted a name of its own")
    base = earlier.get(str(entry["includes"])) if "includes" in entry else None
    if "includes" in entry and base is None:
        raise UsageError(
            f"{where}: {name}: includes {entry['includes']!r}: wanted a level above it in the file"
        )
    own = [str(identifier) for identifier in entry.get("requirements", ())]
    if missing := [identifier for identifier in own if identifier not in catalogue]:
        raise UsageError(f"{where}: {name}: the catalogue has no {', '.join(missing)}")
    if entry.get("every", "must") != "must":
        raise UsageError(f"{where}: {name}: every = {entry['every']!r}: wanted 'must'")
    every = [r.id for r in catalogue.values() if r.level == "must"] if "every" in entry else []
    inherited = base.requirements if base else ()
    if twice := sorted({i for i in own if own.count(i) > 1 or i in inherited}):
        raise UsageError(f"{where}: {name}: named twice, here or in what it includes: {', '.join(twice)}")
    level = Level(
        name,
        str(entry.get("sentence", "")),
        tuple(dict.fromkeys((*inherited, *own, *every))),
        _numbers(entry.get("vcpus", base.vcpus if base else ()), where, name),
        _numbers(entry.get("policies", base.policies if base else ()), where, name),
    )
    if not (level.requirements and level.vcpus and level.policies and level.sentence):
        raise UsageError(f"{where}: {name}: wanted a sentence, requirements, vcpus and policies")
    return level


def _numbers(value: Any, where: str, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(number) is int for number in value):
        raise UsageError(f"{where}: {name}: wanted a list of numbers, got {value!r}")
    return tuple(value)


def _reason(entry: dict[str, Any], where: str) -> Reason:
    if set(entry) != {field.name for field in fields(Reason)} or not str(entry["why"]).strip():
        raise UsageError(f"{where}: a reason: wanted why and fact, got {', '.join(sorted(entry))}")
    if entry["fact"] not in FACTS:
        raise UsageError(f"{where}: fact {entry['fact']!r}: there are {', '.join(FACTS)}")
    return Reason(str(entry["why"]), str(entry["fact"]))
