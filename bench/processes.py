# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run of pytest costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def pytest_cpu_s(directory: Path, *options: str) -> float:
    """CPU seconds, user and system, of one quiet run of pytest without its cache.

    :raise SystemExit: it failed, with what it printed.
    """
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv,
            cwd=directory,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # the order of sets moves the cost by a few ms
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            sys.exit(f"{' '.join(argv)} exited with {process.returncode}:\n{output.read().decode()}")
    return usage.ru_utime + usage.ru_stime
