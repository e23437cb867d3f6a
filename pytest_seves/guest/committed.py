# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of guests that are committed, so that a launch needs no assembler and no compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_seves.errors import RigError

_TIMEOUT_S = 60


def run(argv: Sequence[str], folder: Path, what: str) -> str:
    """Run a tool in the folder of the sources; what it printed.

    :param what: what is built, and with what, for the error.
    :raise RigError: it refuses the sources, or warns; its words are in the message.
    """
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise RigError(f"{what}: exit status {done.returncode}: {done.stderr}")
    return done.stdout


def write_or_check(built: bytes, file: Path, arguments: Sequence[str]) -> int:
    """Write what was built, or with ``--check`` compare it; the exit status."""
    if list(arguments) == ["--check"]:
        if file.read_bytes() == built:
            return 0
        print(f"{file} is not what its sources give: run `tox run -e payload`", file=sys.stderr)
        return 1
    file.write_bytes(built)
    return 0
