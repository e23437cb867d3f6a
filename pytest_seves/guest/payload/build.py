# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the probe guest from source/ with NASM: ``python -m pytest_seves.guest.payload.build [--check]``.

The image is committed, so that a launch needs no assembler. A flat binary holds neither dates nor paths: the
same sources give the same bytes. ``--check`` writes nothing and fails when the image is stale.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from pytest_seves.errors import Unsupported
from pytest_seves.guest.committed import run, write_or_check

SOURCE = Path(__file__).parent / "source"
BINARY = Path(__file__).parent / "probe.bin"


def build() -> bytes:
    """The image, assembled from the sources.

    :raise Unsupported: there is no ``nasm`` here.
    :raise RigError: NASM refuses the sources, or warns; its words are in the message.
    """
    nasm = shutil.which("nasm")
    if nasm is None:
        raise Unsupported("probe guest: no nasm on PATH; it is in the Debian package of that name")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "probe.bin"
        argv = [nasm, "-f", "bin", "-Werror", "-o", str(image), "probe.asm"]
        run(argv, SOURCE, f"probe guest: nasm in {SOURCE}")
        return image.read_bytes()


def main(arguments: list[str]) -> int:
    """Write the image, or with ``--check`` compare it; the exit status."""
    return write_or_check(build(), BINARY, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
