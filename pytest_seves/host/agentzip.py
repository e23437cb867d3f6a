# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent as one file: a zipapp of ``agent/`` and ``spec/``, built in memory."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

_MAIN = b"""\
# SPDX-License-Identifier: GPL-2.0-or-later
from pytest_seves.agent.__main__ import main

raise SystemExit(main())
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can tell


@dataclass(frozen=True)
class AgentZip:
    """The bytes of the program and their SHA-256, which is its version."""

    data: bytes
    sha256: str


@functools.cache
def agent_zip() -> AgentZip:
    """The zipapp, built once.

    The same sources give the same bytes: they are sorted, without times, and not compressed, since the
    output of compressors differs between releases of zlib.
    """
    package = resources.files("pytest_seves")
    sources = {"__main__.py": _MAIN, "pytest_seves/__init__.py": (package / "__init__.py").read_bytes()}
    for name in ("agent", "spec"):
        sources.update(_sources(package / name, f"pytest_seves/{name}"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, sources[name])
    data = buffer.getvalue()
    return AgentZip(data, hashlib.sha256(data).hexdigest())


def _sources(directory: Traversable, prefix: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in directory.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            found.update(_sources(entry, path))
        elif entry.name.endswith(".py"):
            found[path] = entry.read_bytes()
    return found
