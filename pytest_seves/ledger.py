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
from .evidence.folder import Folder, json_file, write_whole
from .guest.archive import remove_halves
from .hosts import Hosts
from .options import Options
from .report import catalogue, plan
from .report.levels import LEVELS
from .results import Reports

#: What an earlier run leaves, of this version or of one before there were bundles.
#: What others write at the end: the verdicts, and what a qualification report is made from.
_OTHERS = ("verdicts.json", "summary.md", LEVELS, plan.NAME)
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
        self._reports = Reports(options.hosts, hosts.without_keys)
        self._copies: dict[Path, str] = {}
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

    def seal(self, status: int, counts: tuple[int, int], blocked: Mapping[str, Mapping[str, Any]]) -> bool:
        """Write the rest, and the SHA-256 of every file: nothing is added afterwards.

        Where no test came to its end there is nothing to keep, and the directory is left to the next run:
        False, there is no bundle.
        """
        if self._about is None:
            return False
        for line in self._reports.rest():
            self._append(line)
        if not (self._folder / RESULTS).stat().st_size:  # a usage error, or nothing was collected
            (self._folder / RESULTS).unlink()
            (self._folder / ABOUT).unlink()
            return False
        remove_halves(self._folder)
        names, own = self._names(), Folder(self._folder)
        self._about.update(
            ended=datetime.now(UTC).isoformat(),
            exit_status=int(status),
            launches=counts[0],
            requests=counts[1],
            blocked={host: dict(row) for host, row in blocked.items()},
            sealed={name: own.sha256(name) for name in names},
        )
        self._write()
        return True

    def _names(self) -> list[str]:
        """Files of the bundle; what else lies there, a log that still grows, is somebody else's."""
        mine = {RESULTS, *_OTHERS, *self._copies.values(), *self._options.hosts}
        paths = [path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file()]
        links = (path for path in paths if not (self._folder / path).is_symlink())
        return sorted(str(path) for path in links if path.parts[0] in mine)

    def _write(self) -> None:
        write_whole(self._folder / ABOUT, json_file(self._about))

    def _copy_catalogues(self, suite: Path) -> None:
        if suite in self._suites:
            return
        self._suites.add(suite)
        for name in (catalogue.CATALOGUE, catalogue.KNOWN_DEFECTS):
            path = catalogue.find(suite, name)
            if path is not None and path not in self._copies:
                stem = name.removesuffix(".toml")
                number = sum(copy.startswith(stem) for copy in self._copies.values()) + 1
                self._copies[path] = name if number == 1 else f"{stem}-{number}.toml"
                shutil.copyfile(path, self._folder / self._copies[path])


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
