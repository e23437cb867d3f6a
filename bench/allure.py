# SPDX-License-Identifier: GPL-2.0-or-later
"""What Allure results cost: a run of tests that share one launch on the model, without them and with them.

Compares the CPU time, user and system, of the whole pytest process, in turn; the smallest of each counts.
Also counts the files of the results: allure-pytest writes one for each result and one for each fixture of a
test, the plugin adds one archive for each launch. Prints one JSON object.

Usage: python bench/allure.py [--rounds N] [--tests N]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.processes import pytest_cpu_s

#: Milliseconds of CPU time for a result, and archives for a launch.
LIMIT_MS = 5.0
LIMIT_ARCHIVES = 1
SUITE = """
import pytest

@pytest.mark.requirement("X-1")
@pytest.mark.parametrize("number", range({tests}))
def test_it(launch_guest, number):
    assert launch_guest().timeline.created_vcpus == [0]
"""
CATALOGUE = '[[requirement]]\nid = "X-1"\nlevel = "must"\nsentence = "It."\nsource = "d"\n'


def main() -> int:
    """Run the benchmark; 1 when a result costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=1000)
    arguments = parser.parse_args()
    without_s: list[float] = []
    with_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as name:
        directory, results = Path(name), Path(name, "results")
        (directory / "pytest.ini").write_text("[pytest]\n")
        (directory / "requirements.toml").write_text(CATALOGUE)
        (directory / "test_bench.py").write_text(SUITE.format(tests=arguments.tests))
        for _ in range(arguments.rounds):
            without_s.append(pytest_cpu_s(directory, "--sev-host=model"))
            with_s.append(
                pytest_cpu_s(directory, "--sev-host=model", f"--alluredir={results}", "--clean-alluredir")
            )
        files = Counter(file.stem.rpartition("-")[2] for file in results.iterdir())
        size = sum(file.stat().st_size for file in results.iterdir())
    each_ms = (min(with_s) - min(without_s)) / arguments.tests * 1000
    result = {
        "benchmark": "allure",
        "tests": arguments.tests,
        "without_s": [round(value, 2) for value in without_s],
        "with_s": [round(value, 2) for value in with_s],
        "ratio": round(min(with_s) / min(without_s), 2),
        "each_ms": round(each_ms, 2),
        "limit_ms": LIMIT_MS,
        "files": dict(files),
        "size_mib": round(size / (1 << 20), 1),
        "python": platform.python_version(),
        "allure_pytest": version("allure-pytest"),
    }
    print(json.dumps(result, indent=2))
    return 0 if each_ms <= LIMIT_MS and files["attachment"] <= LIMIT_ARCHIVES else 1


if __name__ == "__main__":
    sys.exit(main())
