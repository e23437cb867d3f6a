# SPDX-License-Identifier: GPL-2.0-or-later
"""The run's own part of the bundle: bundle.json and results.jsonl, written by the controller alone."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from . import __version__
from .errors import UsageError
from .evidence.bundle import ABOUT, FORMAT, RESULTS, VERSION
from .evidence.folder import Folder
from .evidence.plain import plain_line
from .guest.archive import remove_halves, write_whole
from .hosts import Hosts
from .options import Options
from .report import catalogue
from .verdicts import outcome, why

#: What an earlier run leaves, of this version or of one before there were bundles.
_TAKEN = (ABOUT, RESULTS, "verdicts.json")
_PLUGINS = ("pytest", "pytest-xdist", "paramiko", "qemu.qmp", "cryptography", "unicorn")
_SIMPLE = (str, int, float, bool, type(None))


@dataclass
class _Test:
    """Reports of one test so far."""

    reports: list[pytest.TestReport] = field(default_factory=list)

    def line(self, options: Options, hosts: Hosts) -> dict[str, Any]:
        """What became of it: the first report that did not pass decides, else the call."""
        called = [r for r in self.reports if r.when == "call" or hasattr(r, "wasxfail")] or self.reports
        decisive = next((r for r in self.reports if r.failed), None)
        decisive = decisive or next((r for r in self.reports if r.skipped), called[0])
        properties = dict(decisive.user_properties)
        host = str(properties.get("host", options.hosts[0]))
        decided = outcome(decisive)
        refused = hasattr(decisive, "sev_blocked") and decisive.longreprtext.startswith("blocked: ")
        return {
            "test": decisive.nodeid,
            "host": host,
            "requirement": properties.get("requirement"),
            "outcome": "blocked" if refused else decided,
            "why": plain_line(hosts.without_keys(why(decisive))) if decided != "passed" else "",
            "rig": bool(getattr(decisive, "sev_rig", False)),
            "parameters": getattr(self.reports[0], "sev_parameters", {}),
            "started": datetime.fromtimestamp(getattr(self.reports[0], "start", 0), UTC).isoformat(),
            "duration_s": round(sum(r.duration for r in self.reports), 6),
            "evidence": getattr(self.reports[-1], "sev_evidence", []),
        }


class Ledger:
    """A plugin of the controller, where ``--sev-artifacts`` is given.

    :param folder: the bundle's directory.
    :param run: the id of the run.
    """

    def __init__(self, config: pytest.Config, options: Options, hosts: Hosts, folder: Path, run: str) -> None:
        self._config = config
        self._options = options
        self._hosts = hosts
        self._folder = folder
        self._run = run
        self._tests: dict[str, _Test] = {}
        self._copied: dict[Path, str] = {}
        self._suites: set[Path] = set()
        self._about: dict[str, Any] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Refuse a directory that has a run in it; say what this run is."""
        if self._config.getoption("collectonly"):
            return
        taken = [name for name in _TAKEN if (self._folder / name).exists()]
        if taken:
            raise pytest.UsageError(str(_taken(self._folder, taken[0])))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._about = {
            "format": FORMAT,
            "version": VERSION,
            "suite": {"name": "pytest-seves", "version": __version__},
            "run": self._run,
            "started": datetime.now(UTC).isoformat(),
            "ended": None,
            "exit_status": None,
            "arguments": [str(word) for word in self._config.invocation_params.args],
            "python": platform.python_version(),
            "plugins": _versions(),
            "defects": list(self._options.defects),
            "hosts": self._hosts.described(),
            "vcpus": list(self._options.vcpus),
            "policies": list(self._options.policies),
            "launches": 0,
            "requests": 0,
            "blocked": {},
            "sealed": None,
        }
        self._write()
        (self._folder / RESULTS).touch()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the test's line when it has come to its end."""
        if self._about is None or not _ours(report):
            return
        self._tests.setdefault(report.nodeid, _Test()).reports.append(report)
        self._copy_catalogues((self._config.rootpath / report.nodeid.partition("::")[0]).parent)
        if report.when == "teardown":
            self._append(report.nodeid)

    def _append(self, nodeid: str) -> None:
        line = self._tests.pop(nodeid).line(self._options, self._hosts)
        with (self._folder / RESULTS).open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode("ascii") + b"\n")

    def seal(self, status: int, counts: tuple[int, int], blocked: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the rest, and the SHA-256 of every file: nothing is added afterwards."""
        if self._about is None:
            return
        for nodeid in list(self._tests):  # a worker that crashed has no teardown
            self._append(nodeid)
        remove_halves(self._folder)
        files = sorted(file for file in self._folder.rglob("*") if file.is_file() and not file.is_symlink())
        names = [str(file.relative_to(self._folder)) for file in files]
        own = Folder(self._folder)
        self._about.update(
            ended=datetime.now(UTC).isoformat(),
            exit_status=int(status),
            launches=counts[0],
            requests=counts[1],
            blocked={host: dict(row) for host, row in blocked.items()},
            sealed={name: own.sha256(name) for name in names if name != ABOUT},
        )
        self._write()

    def _write(self) -> None:
        write_whole(self._folder / ABOUT, json.dumps(self._about, indent=1).encode("ascii") + b"\n")

    def _copy_catalogues(self, suite: Path) -> None:
        if suite in self._suites:
            return
        self._suites.add(suite)
        for name in (catalogue.CATALOGUE, catalogue.KNOWN_DEFECTS):
            path = catalogue.find(suite, name)
            if path is not None and path not in self._copied:
                number = sum(copied == name for copied in self._copied.values()) + 1
                self._copied[path] = name
                stem, dot, suffix = name.partition(".")
                copy = name if number == 1 else f"{stem}-{number}{dot}{suffix}"
                shutil.copyfile(path, self._folder / copy)


def note(report: pytest.TestReport, item: pytest.Item, evidence: list[dict[str, Any]]) -> None:
    """Put on a report, which crosses xdist, what the controller writes down of the test."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    report.sev_parameters = {  # type: ignore[attr-defined]
        name: _simple(value)
        for name, value in parameters.items()
        if isinstance(value, _SIMPLE) and name != "sev_host"
    }
    report.sev_evidence = list(evidence)  # type: ignore[attr-defined]


def _simple(value: object) -> object:
    """The same without a class of its own: JSON and xdist know no enumerations."""
    if isinstance(value, bool) or value is None:
        return value
    return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))


def _ours(report: pytest.TestReport) -> bool:
    return not {"host", "requirement"}.isdisjoint(dict(report.user_properties))


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PLUGINS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _taken(folder: Path, name: str) -> UsageError:
    return UsageError(
        f"--sev-artifacts {folder}: {name} of an earlier run is there already, and evidence is never "
        "overwritten or mixed: name another directory, or remove this one"
    )
