# SPDX-License-Identifier: GPL-2.0-or-later
"""What a whole run has, as ``suite.json`` in the bundle says: tests, and hashes of the suites' files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.folder import Folder

FORMAT, VERSION = "pytest-seves-suite", 1
NAME = "suite.json"
#: What a suite is made of; what Python caches and editors leave is not.
_KINDS = {".py", ".toml", ".ini", ".cfg"}


@dataclass(frozen=True)
class Plan:
    """The suites of a run.

    :param tests: requirement by test, of every test that a run with nothing left out has; None: not known.
    :param why: why it is not known.
    :param files: SHA-256 of the suites' files, by name from pytest's root directory.
    :param package: SHA-256 over the files of this package.
    :param plugins: pytest's plugins that took part, by distribution or name, with their versions.
    :param environment: what else changed pytest's behaviour: variables by name.
    """

    tests: Mapping[str, str] | None
    why: str
    files: Mapping[str, str]
    package: str
    plugins: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """One hash over all files of the suites."""
        return digest(self.files)

    def to_json(self) -> str:
        """The file's content."""
        head = {"format": FORMAT, "version": VERSION, "why": self.why, "package": self.package}
        tests = None if self.tests is None else dict(self.tests)
        run = {"plugins": dict(self.plugins), "environment": dict(self.environment)}
        whole = {**head, **run, "sha256": self.sha256, "files": dict(self.files), "tests": tests}
        return json.dumps(whole, indent=1) + "\n"


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 over names and hashes, in the form that sha256sum prints, sorted by name."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return Folder.digest(lines.encode())


def hashes(folders: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 by name from `root` of every file below the folders that decides what is tested."""
    found = {}
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix in _KINDS and file.is_file() and "__pycache__" not in file.parts:
                name = file.relative_to(root).as_posix()
                found[name] = Folder.digest(file.read_bytes())
    return found


def package_sha256() -> str:
    """One hash over this package: what recorded, decoded and judged."""
    package = Path(__file__).resolve().parents[1]
    files = (
        file for file in sorted(package.rglob("*")) if file.is_file() and "__pycache__" not in file.parts
    )
    return digest({f.relative_to(package).as_posix(): Folder.digest(f.read_bytes()) for f in files})


def read(content: bytes) -> Plan:
    """The plan in a bundle.

    :raise EvidenceError: it is none.
    """
    try:
        raw: dict[str, Any] = json.loads(content)
        if (raw["format"], raw["version"]) != (FORMAT, VERSION):
            raise ValueError(f"wanted {FORMAT!r} version {VERSION}, got {str(raw['format'])[:80]!r}")
        tests, files, plugins, environment = (
            raw[key] for key in ("tests", "files", "plugins", "environment")
        )
        texts = [*files.items(), *plugins.items(), *environment.items(), *(tests or {}).items()]
        if not all(isinstance(part, str) for pair in texts for part in pair):
            raise ValueError("files, plugins, environment and tests: wanted texts by name")
        return Plan(tests, str(raw["why"]), files, str(raw["package"]), plugins, environment)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EvidenceError(f"{NAME}: {type(error).__name__}: {error}", file=NAME) from error
