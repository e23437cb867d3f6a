# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the init of Linux guests with GCC: ``python -m pytest_seves.guest.linux.build [--check]``.

The program is committed, so that a launch needs no compiler. Other compilers give other bytes, so Debian 12's
is the one that counts. ``--check`` writes nothing and fails when the program is stale.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from pytest_seves.errors import Unsupported
from pytest_seves.guest.committed import run, write_or_check

SOURCE = Path(__file__).parent / "init.c"
BINARY = Path(__file__).parent / "init.bin"
COMPILER, VERSION = "gcc-12", "12.2.0"
_FLAGS = (
    *("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror", "-mgeneral-regs-only"),
    *(
        "-ffreestanding",
        "-fno-builtin",
        "-fno-pie",
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
    ),
    # No calls of memset and memcpy out of loops: there is no library that has them.
    *("-fcf-protection=none", "-fno-tree-loop-distribute-patterns"),
    *("-nostdlib", "-static", "-no-pie", "-s", "-Wl,--build-id=none,-z,noseparate-code,-z,noexecstack"),
)


def build() -> bytes:
    """The program, compiled and linked from its source.

    :raise Unsupported: that compiler is not here, or another release of it.
    :raise RigError: it refuses the source, or warns; its words are in the message.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise Unsupported(
            f"init of Linux guests: no {COMPILER} on PATH; it is in the Debian package of that name"
        )
    got = _run([compiler, "-dumpfullversion"]).strip()
    if got != VERSION:
        raise Unsupported(f"init of Linux guests: wanted GCC {VERSION}, got {got}: it gives other bytes")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "init"
        _run([compiler, *_FLAGS, "-o", str(program), SOURCE.name])
        return program.read_bytes()


def _run(argv: list[str]) -> str:
    return run(argv, SOURCE.parent, f"init of Linux guests: {COMPILER}")


def main(arguments: list[str]) -> int:
    """Write the program, or with ``--check`` compare it; the exit status."""
    return write_or_check(build(), BINARY, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
