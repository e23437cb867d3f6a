# SPDX-License-Identifier: GPL-2.0-or-later
"""What further hosts cost and bring: two workers on two model hosts against one, memory, and a large lab.

The same tests run on one host in one worker, and on two hosts in two: twice the work. Prints one JSON object.

Usage: python bench/hosts.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pytest_seves.host.inventory import load_host
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost

PROJECT = Path(__file__).resolve().parents[1]
#: How many times the work of one worker two are to do, and how many hosts a large lab has.
FASTER, LAB = 1.7, 50
SELECTION = (
    "suites/init",
    "suites/vmsa",
    "-k",
    "not apic_ids",
    "--sev-vcpus",
    "1,2,3,8",
    "--sev-policy",
    "0x4,0x5",
)


def lab_of(folder: Path, count: int) -> Path:
    """A lab of `count` model hosts, called host0 and so on."""
    folder.mkdir()
    for number in range(count):
        (folder / f"host{number}.toml").write_text('[host]\nmodel = "linux-6.1"\n')
    return folder


def suite_s(lab: Path, hosts: int) -> float:
    """Wall time of the selection on so many hosts, with a worker for each.

    :raise SystemExit: something did not pass.
    """
    named = [word for number in range(hosts) for word in ("--sev-host", f"host{number}")]
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION, *named]
    began = time.monotonic()
    run = subprocess.run(
        [*argv, f"--sev-lab={lab}", "-n", str(hosts)], cwd=PROJECT, capture_output=True, check=False
    )
    if run.returncode:
        sys.exit(f"{argv} ended with {run.returncode}:\n{run.stdout.decode()}")
    return time.monotonic() - began


def resident_kib() -> int:
    """Memory of this process that is in RAM (proc(5), VmRSS)."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def memory_kib(count: int) -> float:
    """What a further host takes of the controller: connected, and its facts known."""
    sizes = []
    with ExitStack() as stack:
        for _ in range(count):
            target = stack.enter_context(Target(entry_of(stack.enter_context(ModelHost.start()))))
            assert target.readiness
            sizes.append(resident_kib())
    return (sizes[-1] - sizes[0]) / (count - 1)


def load_ms(lab: Path, rounds: int) -> float:
    """Least time to read two hosts of a lab."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        load_host("host0", lab)
        load_host("host1", lab)
        took.append(time.perf_counter() - began)
    return min(took) * 1e3


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = lab_of(Path(folder) / "small", 2), lab_of(Path(folder) / "large", LAB)
        one, two = [], []
        for _ in range(options.rounds):  # interleaved: what else the machine does meets both
            one.append(suite_s(small, 1))
            two.append(suite_s(small, 2))
        read = {len(list(lab.iterdir())): load_ms(lab, 50) for lab in (small, large)}
    faster = 2 * min(one) / min(two)
    result = {
        "benchmark": "hosts",
        "one_worker_s": round(min(one), 2),
        "two_workers_s": round(min(two), 2),
        "times_the_work": round(faster, 2),
        "limit": FASTER,
        "kib_for_a_further_host": round(memory_kib(4)),
        "ms_to_read_two_hosts_of_a_lab": {str(size): round(ms, 3) for size, ms in read.items()},
    }
    print(json.dumps(result, indent=1))
    return 0 if faster >= FASTER else 1


if __name__ == "__main__":
    sys.exit(main())
