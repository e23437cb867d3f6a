# SPDX-License-Identifier: GPL-2.0-or-later
"""``[provision]`` of a lab file: what ``--sev-provision=apply`` brings the host to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_seves.host import inventory_values as values
from pytest_seves.host.inventory_values import BadValue

MANAGERS = ("apt", "dnf", "zypper")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:-]*[A-Za-z0-9+]")  # a '-' at the end means removal to apt
_GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PARAMETER = re.compile(r"[A-Za-z0-9_]{1,64}")
_VALUE = re.compile(r"[A-Za-z0-9_,.:+-]{1,64}")

#: Notes a problem: where, as the path of the key, and what.
Problem = Callable[[tuple[str, ...], str], None]
Schema = dict[str, Callable[[object], Any]]


@dataclass(frozen=True)
class FileToPut:
    """A file of this machine that belongs on the host at `path`."""

    source: Path
    path: str
    sha256: str


@dataclass(frozen=True)
class VmmBuild:
    """A build of the VMM: a tarball to unpack in `into`, or a program that must be at `path` on the host."""

    tarball: Path | None = None
    sha256: str | None = None
    into: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Provision:
    """What the host is to be.

    :ivar packages: names by package manager; under ``any`` where all managers use the same.
    :ivar module_parameters: module, and its parameters with their values.
    :ivar memlock: KiB, or ``unlimited``.
    """

    packages: tuple[tuple[str, tuple[str, ...]], ...] = ()
    module_parameters: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    reload_modules: bool = False
    groups: tuple[str, ...] = ()
    udev: bool = False
    memlock: str | None = None
    file: tuple[FileToPut, ...] = ()
    vmm: VmmBuild | None = None


def read_provision(table: object, base: Path, problem: Problem) -> Provision:
    """The section as far as it is right; every problem in it is told to `problem`.

    :param base: the directory of the lab file, where relative paths of this machine start.
    """

    def source(value: object) -> Path:
        return base / Path(values.plain(value)).expanduser()

    def files(value: object) -> tuple[FileToPut, ...]:
        if not isinstance(value, list):
            raise BadValue("wanted [[provision.file]] sections")
        schema: Schema = {"source": source, "path": values.remote_path, "sha256": values.sha256}
        read = [
            _table(each, ("provision", "file", str(number)), schema, problem, needed=tuple(schema))
            for number, each in enumerate(value, 1)
        ]
        paths = [each["path"] for each in read if "path" in each]
        if len(set(paths)) < len(paths):
            raise BadValue("wanted a path for each file; two have the same")
        return tuple(FileToPut(**each) for each in read if len(each) == len(schema))

    def vmm(value: object) -> VmmBuild:
        schema: Schema = {
            "tarball": source,
            "sha256": values.sha256,
            "into": values.remote_path,
            "path": values.remote_path,
        }
        read = _table(value, ("provision", "vmm"), schema, problem)
        if set(read) not in ({"tarball", "sha256", "into"}, {"path"}):
            raise BadValue("wanted tarball, sha256 and into, or path alone")
        return VmmBuild(**read)

    schema: Schema = {
        "packages": _packages,
        "module_parameters": _modules,
        "reload_modules": values.boolean,
        "groups": lambda value: _names(value, _GROUP, 'groups, such as ["kvm"]'),
        "udev": values.boolean,
        "memlock": _memlock,
        "file": files,
        "vmm": vmm,
    }
    return Provision(**_table(table, ("provision",), schema, problem))


def _table(
    table: object,
    path: tuple[str, ...],
    schema: Schema,
    problem: Problem,
    needed: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The checked values of a table; what is wrong with it is told to `problem`."""
    if not isinstance(table, dict):
        problem(path, f"wanted a section [{'.'.join(path)}], got {table!r}")
        return {}
    taken = {}
    for key, value in table.items():
        if key not in schema:
            near = difflib.get_close_matches(key, schema, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(schema)}"
            problem((*path, key), f"unknown key{hint}")
            continue
        try:
            taken[key] = schema[key](value)
        except BadValue as bad:
            got = f"; got {value!r}" if isinstance(value, str | int | float) else ""
            problem((*path, key), f"{bad}{got}")
    for key in needed:
        if key not in table:
            problem(path, f"missing key: {key}")
    return taken


def _names(value: object, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and pattern.fullmatch(v) for v in value):
        raise BadValue(f"wanted a list of {what}")
    return tuple(value)


def _packages(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    by_manager = value if isinstance(value, dict) else {"any": value}
    if isinstance(value, dict) and not set(value) <= set(MANAGERS):
        raise BadValue(f"wanted a list, or lists under {', '.join(MANAGERS)}")
    what = 'package names, such as ["ovmf"]'
    return tuple((manager, _names(names, _PACKAGE, what)) for manager, names in by_manager.items())


def _modules(value: object) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    form = 'wanted kvm_amd and ccp with parameters in strings, such as kvm_amd = {sev_es = "1"}'
    if not isinstance(value, dict) or not set(value) <= {"kvm_amd", "ccp"}:
        raise BadValue(form)
    for parameters in value.values():
        if not isinstance(parameters, dict) or not parameters:
            raise BadValue(form)
        for key, text in parameters.items():
            if not (_PARAMETER.fullmatch(key) and isinstance(text, str) and _VALUE.fullmatch(text)):
                raise BadValue(f"{form}; {key} is not")
    return tuple((module, tuple(parameters.items())) for module, parameters in value.items())


def _memlock(value: object) -> str:
    if value == "unlimited":
        return "unlimited"
    try:
        return str(values.integer(64, 1 << 40)(value))
    except BadValue:
        raise BadValue('wanted "unlimited", or a number of KiB') from None
