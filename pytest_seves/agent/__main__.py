# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point of the zipapp, and of ``python -m pytest_seves.agent``."""

from __future__ import annotations

import hashlib
import sys

from pytest_seves.agent.service import Service


def main() -> int:
    """Serve the controller on stdin and stdout."""
    return Service(_digest(sys.argv[0])).run()


def _digest(program: str) -> str:
    """The SHA-256 of the zipapp that runs; "source" when it is a source tree."""
    if not program.endswith(".pyz"):
        return "source"
    with open(program, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
