# SPDX-License-Identifier: GPL-2.0-or-later
"""The run's own part of the bundle: bundle.json and results.jsonl, written by the controller alone."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from . import __version__
from .errors import UsageError
from .evidence.bundle import ABOUT, FORMAT, RESULTS, VERSION
from .evidence.folder import Folder
from .guest.archive import remove_halves, write_whole
from .hosts import Hosts
from .options import Options
from .report import catalogue
from .results import Reports

#: What an earlier run leaves, of this version or of one before there were bundles.
_TAKEN = (ABOUT, RESULTS, "verdicts.json")
_PLUGINS = ("pytest", "pytest-xdist", "paramiko", "cryptography", "unicorn")


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
        self._reports = Reports(options.hosts[0], hosts.without_keys)
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
        line = self._reports.add(report) if self._about is not None else None
        if line is not None:
            self._copy_catalogues((self._config.rootpath / report.nodeid.partition("::")[0]).parent)
            self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        with (self._folder / RESULTS).open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode("ascii") + b"\n")

    def seal(self, status: int, counts: tuple[int, int], blocked: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the rest, and the SHA-256 of every file: nothing is added afterwards."""
        if self._about is None:
            return
        for line in self._reports.rest():
            self._append(line)
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
