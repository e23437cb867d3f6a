# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the probe guest from source/ with NASM: ``python -m pytest_seves.guest.payload.build [--check]``.

The image is committed, so that a launch needs no assembler. A flat binary holds neither dates nor paths: the
same sources give the same bytes. ``--check`` writes nothing and fails when the image is stale.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pytest_seves.errors import RigError, Unsupported

SOURCE = Path(__file__).parent / "source"
BINARY = Path(__file__).parent / "probe.bin"
_TIMEOUT_S = 60


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
        run = subprocess.run(
            argv, cwd=SOURCE, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if run.returncode:
            raise RigError(f"probe guest: nasm in {SOURCE}: exit status {run.returncode}: {run.stderr}")
        return image.read_bytes()


def main(arguments: list[str]) -> int:
    """Write the image, or with ``--check`` compare it; the exit status."""
    image = build()
    if arguments == ["--check"]:
        if BINARY.read_bytes() == image:
            return 0
        print(f"{BINARY} is not what its sources give: run `tox run -e payload`", file=sys.stderr)
        return 1
    BINARY.write_bytes(image)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
