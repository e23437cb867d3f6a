# SPDX-License-Identifier: GPL-2.0-or-later
"""What a qualification report of 10,000 results costs: seconds of CPU time, and bytes.

A bundle with so many results, of all requirements over the cells of a whole run, is made by hand; its report
is written with a signature, and verified. The ratio is that of the report's time to what reading and checking
the bundle takes by itself. Prints one JSON object.

Usage: python bench/report.py [--results N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))  # the maker of bundles is among the tests, which are no package

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from pytest_seves.evidence.bundle import Bundle
from pytest_seves.report import catalogue, qualify
from pytest_seves.report.signature import named
from pytest_seves.report.verify import verify
from tests.report import bundles

LIMIT_S = 5.0
LIMIT_BYTES = 20_000_000
VCPUS, POLICIES = (1, 2, 3, 8, 16, 64), (4, 5, 6, 7)
OUTCOMES = ("passed",) * 17 + ("skipped", "known defect", "failed")


def results(number: int) -> list[dict[str, Any]]:
    """Results over all requirements, vCPU counts and policies; some of each outcome."""
    known = list(catalogue.load(PROJECT / "suites" / "requirements.toml"))
    found = []
    for place in range(number):
        vcpus, policy = VCPUS[place % 6], POLICIES[place // 6 % 4]
        outcome = OUTCOMES[place % len(OUTCOMES)]
        name = f"suites/family/test_file.py::test_something_of_it[{vcpus}vcpu-{policy}-{place}]"
        why = "" if outcome == "passed" else f"wanted SUCCESS, got 0x03 INVALID_CONFIG, case {place % 40}"
        parameters = {"vcpus": vcpus, "policy": policy, "init_path": None}
        identifier = known[place % len(known)]
        found.append(
            bundles.result(name, identifier, outcome, why, launch=place % 400, parameters=parameters)
        )
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, user and system, and what came of it."""
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def main() -> int:
    """Run the benchmark; 1 when a report takes longer or is larger than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=int, default=10_000)
    given = parser.parse_args()
    key = Ed25519PrivateKey.generate()
    signer = CryptoSigner(key, named(key.public_key()))
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as place:
        folder, lines = Path(place), results(given.results)
        files: dict[str, str | bytes | None] = {
            name: (PROJECT / "suites" / name).read_text() for name in ("requirements.toml", "levels.toml")
        }
        files["suite.json"] = bundles.plan({line["test"]: line["requirement"] for line in lines})
        run = bundles.about(vcpus=list(VCPUS), policies=list(POLICIES))
        root = bundles.write(folder / "evidence", run=run, lines=lines, files=files, launches=400)
        read_s, bundle = timed(lambda: Bundle.open(root))
        report_s, _ = timed(lambda: qualify.write(bundle, folder, signer))
        verify_s, found = timed(lambda: verify(folder, signer.public_key))
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    result = {
        "benchmark": "report",
        "results": given.results,
        "read_s": round(read_s, 2),
        "report_s": round(report_s, 2),
        "verify_s": round(verify_s, 2),
        "ratio": round(report_s / read_s, 2),
        "bytes": sizes,
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "limit_s": LIMIT_S,
        "limit_bytes": LIMIT_BYTES,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    if found.wrong:
        sys.exit("\n".join(found.wrong))
    return 0 if report_s <= LIMIT_S and sum(sizes.values()) <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
