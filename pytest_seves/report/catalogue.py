# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue of requirements and of known defects: two TOML files beside the suites."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pytest_seves.errors import UsageError

CATALOGUE = "requirements.toml"
KNOWN_DEFECTS = "known_defects.toml"
#: The `vmm` of a known defect of KVM; its versions are those of the kernel's release.
KERNEL = "kvm"
_ID = re.compile(r"[A-Z]+(?:-[A-Z]+)*-[0-9]+")
Version = tuple[int, ...]


@dataclass(frozen=True)
class Requirement:
    """One sentence that is true or false of a host or VMM.

    :param level: ``must`` or ``should`` (RFC 2119).
    :param source: document and section.
    :param defects: names of defects that turn it red, for `--sev-defect`.
    """

    id: str
    sentence: str
    level: str
    source: str
    defects: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """``VMSA`` of ``VMSA-1``."""
        return self.id.rpartition("-")[0]


@dataclass(frozen=True)
class KnownDefect:
    """A product bug that is known: an expected failure with a reference, never hidden.

    :param requirement: the requirement it breaks.
    :param vmm: name of the VMM, or :data:`KERNEL`.
    :param since: first affected version, as numbers.
    :param before: first version without it, None while no such version is known.
    :param reference: where it is described or was mended.
    :param test: part of the test's name, to narrow it down; empty for every test of the requirement.
    """

    requirement: str
    vmm: str
    since: Version
    what: str
    reference: str
    before: Version | None = None
    test: str = ""

    def affects(self, requirement: str, test: str, vmm: str, version: Version) -> bool:
        """True when this test of this requirement is expected to fail with that VMM."""
        return (
            requirement == self.requirement
            and self.test in test
            and vmm == self.vmm
            and self.since <= version
            and (self.before is None or version < self.before)
        )


def find(start: Path, name: str = CATALOGUE) -> Path | None:
    """The file `name` in the nearest directory at or above `start` that has one."""
    return next((folder / name for folder in (start, *start.parents) if (folder / name).is_file()), None)


@cache
def load(path: Path) -> Mapping[str, Requirement]:
    """Requirements by id, in the file's order.

    :raise UsageError: the file is malformed; the message names file and entry.
    """
    return parse_requirements(_read(path), str(path))


def parse_requirements(text: str, path: str) -> Mapping[str, Requirement]:
    """The same out of a catalogue's text.

    :param path: the file's name, for messages.
    :raise UsageError: it is malformed.
    """
    found: dict[str, Requirement] = {}
    for entry in _entries(path, text, "requirement"):
        requirement = _build(Requirement, path, entry)
        if not _ID.fullmatch(requirement.id):
            raise UsageError(f"{path}: id {requirement.id!r}: wanted FAMILY-NUMBER")
        if requirement.level not in ("must", "should"):
            raise UsageError(
                f"{path}: {requirement.id}: level {requirement.level!r}: wanted 'must' or 'should'"
            )
        if requirement.id in found:
            raise UsageError(f"{path}: {requirement.id} occurs twice")
        found[requirement.id] = requirement
    return found


@cache
def load_known_defects(path: Path) -> tuple[KnownDefect, ...]:
    """Known product bugs.

    :raise UsageError: the file is malformed.
    """
    return tuple(
        _build(KnownDefect, str(path), entry) for entry in _entries(str(path), _read(path), "defect")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _entries(path: str, text: str, table: str) -> list[dict[str, Any]]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    entries = content.pop(table, [])
    if content or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: wanted nothing but [[{table}]] tables")
    return entries


def _build(kind: type[Any], path: str, entry: dict[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    what = entry.get("id", entry.get("requirement", "an entry without id"))
    if unknown := sorted(set(entry) - names):
        raise UsageError(
            f"{path}: {what}: unknown key {', '.join(unknown)}; there are {', '.join(sorted(names))}"
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    for name in {"since", "before"} & set(values):
        values[name] = tuple(int(part) for part in str(values[name]).split("."))
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {what}: {error}") from None
