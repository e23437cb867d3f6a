# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plugin costs a project that has it installed and does not use it.

Collects 1,000 empty tests in a directory of their own, in turn with the plugin and without it
(``-p no:seves``), and compares the CPU time, user and system, of the whole pytest process. The smallest of
each is the cost; the other rounds met other work of the machine. Prints one JSON object.

Usage: python bench/collect.py [--rounds N] [--tests N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.processes import pytest_cpu_s

#: What the plugin may add, in milliseconds of CPU time.
LIMIT_MS = 10.0
FILES = 10


def write_project(directory: Path, tests: int) -> None:
    """Fill an empty directory with a pytest project of so many tests that do nothing."""
    (directory / "pytest.ini").write_text("[pytest]\n")
    body = "\n\n".join(f"def test_{number}():\n    pass" for number in range(tests // FILES))
    for number in range(FILES):
        (directory / f"test_file_{number}.py").write_text(body + "\n")


def measure(tests: int, rounds: int) -> tuple[list[float], list[float]]:
    """CPU milliseconds of each round, without and with the plugin, the two taking turns."""
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as name:
        directory = Path(name)
        write_project(directory, tests)
        pytest_cpu_s(directory, "--collect-only")  # byte code of pytest and of the tests, and the file cache
        with_ms: list[float] = []
        without_ms: list[float] = []
        for _ in range(rounds):
            without_ms.append(pytest_cpu_s(directory, "--collect-only", "-p", "no:seves") * 1000)
            with_ms.append(pytest_cpu_s(directory, "--collect-only") * 1000)
    return without_ms, with_ms


def third_smallest(values: list[float]) -> float:
    """How far the best three agree says how far to trust the best."""
    return sorted(values)[:3][-1]


def main() -> int:
    """Run the benchmark; 1 when the plugin costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tests", type=int, default=1000)
    arguments = parser.parse_args()
    without_ms, with_ms = measure(arguments.tests, arguments.rounds)
    added_ms = min(with_ms) - min(without_ms)
    result = {
        "benchmark": "collect",
        "tests": arguments.tests,
        "with_ms": [round(value, 1) for value in with_ms],
        "without_ms": [round(value, 1) for value in without_ms],
        "added_ms": round(added_ms, 1),
        "noise_ms": round(max(third_smallest(values) - min(values) for values in (with_ms, without_ms)), 1),
        "ratio": round(min(with_ms) / min(without_ms), 4),
        "limit_ms": LIMIT_MS,
        "python": platform.python_version(),
        "pytest": version("pytest"),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    return 0 if added_ms <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
