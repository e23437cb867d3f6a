# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab inventory: one TOML file per host, checked before anything is connected to.

A file that is wrong is refused as a whole, with every problem at once, each as ``file:line: key: what``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_seves.errors import InventoryError
from pytest_seves.host import inventory_values as values
from pytest_seves.host.inventory_provision import Provision, read_provision
from pytest_seves.host.toml_lines import toml_lines

DEFAULT_MODEL = "linux-6.1"
"""The profile of the model host when no file says otherwise."""

LABGRID = "labgrid:"
"""Before the name of a place, where the address would be."""


@dataclass(frozen=True)
class Jump:
    """A host that the connection goes through (``[host.jump]``)."""

    address: str
    port: int = 22
    user: str = ""
    host_key: str | None = None
    identity: Path | None = None


@dataclass(frozen=True)
class Vmm:
    """The program that launches guests; ``binary`` is looked up in the PATH of the host."""

    name: str = "qemu"
    binary: str = "qemu-system-x86_64"


@dataclass(frozen=True)
class Firmware:
    """The guest firmware image: an absolute path *on the host*. None on the model, which brings its own."""

    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class GuestKernel:
    """The Linux kernel of guests: absolute paths *on the host*. None: the kernel that the host runs.

    ``msr_module`` is its msr driver; None: found by the kernel's release.
    """

    kernel: str | None = None
    sha256: str | None = None
    msr_module: str | None = None


@dataclass(frozen=True)
class Expect:
    """What this host must offer. None: whatever it has is fine."""

    sev_es: bool = True
    min_es_asids: int = 1
    cpu: str | None = None
    cbitpos: int | None = None
    min_api: tuple[int, ...] | None = None
    min_build: int | None = None
    min_vmm: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Labgrid:
    """Who hands the host out, where its address is ``labgrid:PLACE``. None: labgrid's own default."""

    coordinator: str | None = None


@dataclass(frozen=True)
class LabHost:
    """A host of the lab.

    ``model`` names a profile of the model host, or is None; address, user and keys then come from its start.
    Paths are of this machine, except ``python``, ``vmm.binary`` and those of ``firmware`` and ``guest``: they
    are of the host.
    """

    name: str
    file: Path | None
    address: str
    user: str
    port: int = 22
    identity: Path | None = None
    host_key: str | None = None
    known_hosts: Path | None = None
    jump: Jump | None = None
    sudo: tuple[str, ...] = ()
    python: str = "python3"
    connect_timeout_s: float = 10.0
    keepalive_s: int = 15
    shared: bool = False
    lease_wait_s: float = 600.0
    max_guests: int | None = None
    vmm: Vmm = Vmm()
    firmware: Firmware = Firmware()
    guest: GuestKernel = GuestKernel()
    expect: Expect = Expect()
    labgrid: Labgrid = Labgrid()
    provision: Provision | None = None
    model: str | None = None


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOCAL: dict[str, Callable[[object, Path], Path]] = {
    "identity": values.identity,
    "known_hosts": values.local_path,
}
_SECTIONS: dict[str, dict[str, Callable[[object], Any] | None]] = {
    "host": {
        "address": values.address_or_place,
        "port": values.integer(1, 65535),
        "user": values.word,
        "identity": None,
        "host_key": values.host_key,
        "known_hosts": None,
        "jump": None,
        "sudo": values.words,
        "python": values.word,
        "connect_timeout_s": values.seconds,
        "keepalive_s": values.integer(1, 3600),
        "shared": values.boolean,
        "lease_wait_s": values.wait,
        "max_guests": values.integer(1, 4096),
        "model": values.word,
    },
    "host.jump": {
        "address": values.address,
        "port": values.integer(1, 65535),
        "user": values.word,
        "identity": None,
        "host_key": values.host_key,
    },
    "vmm": {"name": values.vmm_name, "binary": values.plain},
    "firmware": {"path": values.remote_path, "sha256": values.sha256},
    "guest": {
        "kernel": values.remote_path,
        "sha256": values.sha256,
        "msr_module": values.remote_path,
    },
    "expect": {
        "sev_es": values.boolean,
        "min_es_asids": values.integer(0, 4096),
        "cpu": values.plain,
        "cbitpos": values.integer(0, 63),
        "min_api": values.version,
        "min_build": values.integer(0, 0xFFFFFFFF),
        "min_vmm": values.version,
    },
    "labgrid": {"coordinator": values.word},
}
_MODEL_BRINGS = ("address", "port", "user", "identity", "host_key", "known_hosts", "jump", "sudo")


def list_hosts(lab_dir: Path) -> list[str]:
    """The names that :func:`load_host` knows: every ``*.toml`` in `lab_dir`, and the model."""
    try:
        stems = {path.stem for path in Path(lab_dir).glob("*.toml") if _NAME.fullmatch(path.stem)}
    except OSError:
        stems = set()
    return sorted(stems | {"model"})


def load_host(name: str, lab_dir: Path) -> LabHost:
    """Read and check ``<lab_dir>/<name>.toml``; ``model`` works without a file.

    :raises InventoryError: no such host, or a file with problems: all of them, each with its line.
    """
    known = list_hosts(lab_dir)
    if not _NAME.fullmatch(name) or ".." in name:
        raise InventoryError(
            f"host name {name!r}: wanted the plain name of a file in {lab_dir}, such as 'lab1' for"
            f" {lab_dir}/lab1.toml; got a path or odd characters. Known hosts: {', '.join(known)}",
            name=name,
        )
    file = Path(lab_dir) / f"{name}.toml"
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        if name == "model":
            return LabHost(name=name, file=None, address="", user="", model=DEFAULT_MODEL)
        raise InventoryError(
            f"host {name!r}: there is no {file}{_near(name, known)}. Known hosts in"
            f" {lab_dir}: {', '.join(known)}",
            name=name,
            known=known,
        ) from None
    except OSError as error:
        raise InventoryError(f"{file}: cannot be read: {error.strerror or error}", name=name) from error
    return _Reader(name, file, raw).host()


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass
class _Reader:
    """Turns one file into a :class:`LabHost`, collecting the problems on the way."""

    name: str
    file: Path
    raw: bytes
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    problems: list[tuple[int, str, str]] = field(default_factory=list)

    def host(self) -> LabHost:
        """The host, or every problem of the file in one error."""
        tree = self._parse()
        for name in tree.keys() - {"host", "vmm", "firmware", "guest", "expect", "labgrid", "provision"}:
            sections = [*_SECTIONS, "provision"]
            known = ", ".join(f"[{s}]" for s in sections)
            self._problem((name,), f"unknown section{_near(name, sections)}; known are {known}")
        host = self._section(tree.get("host", {}), ("host",))
        vmm, firmware, guest, expect, labgrid = (
            self._section(tree.get(s, {}), (s,)) for s in ("vmm", "firmware", "guest", "expect", "labgrid")
        )
        provision = self._provision(tree)
        self._cross_check(tree)
        if self.problems:
            raise self._error()
        if not (host.get("model") or "host_key" in host or "known_hosts" in host):
            host["known_hosts"] = Path("~/.ssh/known_hosts").expanduser()
        if "jump" in host and not host["jump"].user:
            host["jump"] = replace(host["jump"], user=host["user"])
        return LabHost(
            name=self.name,
            file=self.file,
            vmm=Vmm(**vmm),
            firmware=Firmware(**firmware),
            guest=GuestKernel(**guest),
            expect=Expect(**expect),
            labgrid=Labgrid(**labgrid),
            provision=provision,
            **{"address": "", "user": "", **host},
        )

    def _parse(self) -> dict[str, Any]:
        try:
            text = self.raw.decode("utf-8")
            tree = tomllib.loads(text)
            self.lines = toml_lines(text)
        except UnicodeDecodeError as error:
            line = self.raw.count(b"\n", 0, error.start) + 1
            byte = self.raw[error.start]
            self.problems.append((line, "", f"wanted UTF-8 text, got the byte {byte:#04x}"))
        except RecursionError:
            self.problems.append((1, "", "not TOML: brackets nested too deep"))
        except ValueError as error:  # TOMLDecodeError, and int() refusing thousands of digits
            at = re.search(r"at line (\d+)", str(error))
            line = int(at[1]) if at else self.raw.count(b"\n") + 1
            self.problems.append((line, "", f"not TOML: {error}"))
        else:
            return tree
        raise self._error()

    def _provision(self, tree: dict[str, Any]) -> Provision | None:
        if "provision" not in tree:
            return None
        if isinstance(tree.get("host"), dict) and "model" in tree["host"]:
            self._problem(("provision",), "goes with a real host only: the model runs on this machine")
        return read_provision(tree["provision"], self.file.parent.absolute(), self._problem)

    def _section(self, table: object, path: tuple[str, ...]) -> dict[str, Any]:
        """The checked values of one table. `path` is where it is."""
        schema = _SECTIONS[".".join(path)]
        if not isinstance(table, dict):
            self._problem(path, f"wanted a section [{'.'.join(path)}], got {_show(table)}")
            return {}
        taken: dict[str, Any] = {}
        for key, value in table.items():
            if key not in schema:
                self._problem((*path, key), f"unknown key{self._belongs(key, schema)}")
                continue
            try:
                taken[key] = self._value(key, value, path)
            except values.BadValue as bad:
                self._problem((*path, key), f"{bad}; got {_show(value)}")
        return taken

    def _value(self, key: str, value: object, path: tuple[str, ...]) -> object:
        if key in _LOCAL:
            return _LOCAL[key](value, self.file.parent.absolute())
        if key == "jump":
            jump = self._section(value, (*path, key))
            if isinstance(value, dict) and "address" not in value:
                self._problem((*path, key), 'missing key: write address = "..."')
            return Jump(**{"address": "", **jump})
        parse = _SECTIONS[".".join(path)][key]
        return parse(value) if parse else value

    def _cross_check(self, tree: dict[str, Any]) -> None:
        given, guest = tree.get("host", {}), tree.get("guest", {})
        if isinstance(guest, dict) and "kernel" not in guest:
            for key in sorted(guest.keys() & {"sha256", "msr_module"}):
                self._problem(("guest", key), 'missing key: write kernel = "..." with it')
        if not isinstance(given, dict) or not isinstance(tree.get("firmware", {}), dict):
            return  # already a problem
        if "model" in given:
            for key in sorted(given.keys() & set(_MODEL_BRINGS)):
                self._problem(("host", key), "goes with a real host only: the model sets it when it starts")
            return
        if self.name == "model":
            text = f'missing key: the host named model is the model; write model = "{DEFAULT_MODEL}"'
            self._problem(("host",), text)
            return
        strange = given.keys() - _SECTIONS["host"].keys()
        if not str(given.get("address")).startswith(LABGRID):
            if "labgrid" in tree:
                self._problem(("labgrid",), f'goes with address = "{LABGRID}PLACE" only')
            needed = ["address", "user"]
        else:  # the place says who the user is, but not the one of a jump host
            needed = ["user"] if "jump" in given else []
        for key in needed:
            if key not in given and not _near(key, strange):
                self._problem(("host",), f'missing key: write {key} = "..." into [host]')
        firmware = tree.get("firmware", {})
        misspelt = _near("firmware", tree.keys() - _SECTIONS.keys()) or _near(
            "path", firmware.keys() - {"sha256"}
        )
        if "path" not in firmware and not misspelt:
            text = 'missing key: write path = "/usr/share/OVMF/OVMF_CODE.fd" into [firmware]'
            self._problem(("firmware",), text)

    @staticmethod
    def _belongs(key: str, schema: dict[str, Any]) -> str:
        homes = [section for section, keys in _SECTIONS.items() if key in keys]
        if homes:
            return f"; it belongs to [{homes[0]}]"
        return f"{_near(key, schema)}; known are {', '.join(schema)}"

    def _problem(self, path: tuple[str, ...], text: str) -> None:
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)
        key = ".".join(part if part.isprintable() else repr(part) for part in path)
        self.problems.append((line, key, text))

    def _error(self) -> InventoryError:
        self.problems.sort()
        rows = [f"{self.file}:{line}: {key}{': ' if key else ''}{text}" for line, key, text in self.problems]
        return InventoryError("\n".join(rows), name=self.name, file=str(self.file), problems=self.problems)


def _show(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
