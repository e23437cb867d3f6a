# SPDX-License-Identifier: GPL-2.0-or-later
"""What distance costs: the same tests on a model host behind a TCP proxy, at several round-trip times.

Takes the wall time of all suites at the least and the greatest of them, as docs/lab.md runs them: a first
time, when nothing is known of what tests ask for, and again, when that is asked for ahead; the limit is
about both. At each it takes the wall time of a small selection, most of which is connecting, and of
launches in a row over one connection. What a launch takes longer at a distance, divided by the round-trip
time, is how many round trips it waits for. Least times are taken: other work of the machine only adds.
Prints one JSON object.

Usage: python bench/latency.py [--rtt-ms 0 20 100] [--launches N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.host.client import Call
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost
from tests.faults.proxy import Proxy

#: Round trips that a launch may wait for, and how much longer the suites may take at 100 ms.
TRIPS, SLOWER = 2, 1.3
SUITES = ("suites", "-n", "4", "--dist", "loadgroup")
SELECTION = ("suites/init", "--sev-vcpus", "1,8", "--sev-policy", "0x5")


def suite_s(lab: Path, model: ModelHost, port: int, selection: Sequence[str]) -> float:
    """Wall time of one run of pytest.

    :raise SystemExit: something did not pass.
    """
    text = (
        f'[host]\naddress = "127.0.0.1"\nport = {port}\nuser = "{model.user}"\n'
        f'identity = "{model.identity}"\nhost_key = "{model.host_key}"\n'
        f'[firmware]\npath = "{model.firmware}"\n'
    )
    (lab / "far.toml").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={lab}/cache", *selection]
    began = time.monotonic()
    run = subprocess.run(
        [*argv, "--sev-host", "far", f"--sev-lab={lab}"], cwd=PROJECT, capture_output=True, check=False
    )
    if run.returncode:
        sys.exit(f"{argv} ended with {run.returncode}:\n{run.stdout.decode()}")
    return time.monotonic() - began


def least(rounds: int, lab: Path, model: ModelHost, port: int, selection: Sequence[str]) -> float:
    """The shortest of several runs."""
    return min(suite_s(lab, model, port, selection) for _ in range(rounds))


def launches(model: ModelHost, port: int, count: int) -> tuple[float, Counter[str]]:
    """Least seconds of a launch over a connection that stands, and requests by operation of one launch."""
    asked: Counter[str] = Counter()
    with Target(replace(entry_of(model, "far"), port=port)) as target:
        launcher = Launcher(target)
        launcher.launch(GuestSpec())
        ask = target.client.ask

        def counted(op: str, *args: Any, **options: Any) -> Call:
            asked[op] += 1
            return ask(op, *args, **options)

        target.client.ask = counted  # type: ignore[method-assign]
        took = []
        for _ in range(count):
            began = time.monotonic()
            launcher.launch(GuestSpec())
            took.append(time.monotonic() - began)
    return min(took), Counter({op: round(number / count) for op, number in asked.items()})


def main() -> int:
    """Run the benchmark; 1 when distance costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rtt-ms", type=int, nargs="+", default=[0, 20, 100])
    parser.add_argument("--launches", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--suite-rounds", type=int, default=1)
    parser.add_argument("selection", nargs="*", default=SELECTION)
    arguments = parser.parse_args()
    first: dict[int, float] = {}
    suites: dict[int, float] = {}
    small: dict[int, float] = {}
    launch: dict[int, float] = {}
    requests: Counter[str] = Counter()
    with ModelHost.start() as model, tempfile.TemporaryDirectory(prefix="seves-bench-") as lab:
        for rtt_ms in arguments.rtt_ms:
            with Proxy(model.port, delay_s=rtt_ms / 2000) as proxy:
                small[rtt_ms] = least(arguments.rounds, Path(lab), model, proxy.port, arguments.selection)
                launch[rtt_ms], requests = launches(model, proxy.port, arguments.launches)
        near, far = min(arguments.rtt_ms), max(arguments.rtt_ms)
        for rtt_ms in (near, far):
            with Proxy(model.port, delay_s=rtt_ms / 2000) as proxy:
                first[rtt_ms] = suite_s(Path(lab), model, proxy.port, (*SUITES, "--cache-clear"))
                suites[rtt_ms] = least(arguments.suite_rounds, Path(lab), model, proxy.port, SUITES)
    trips = (launch[far] - launch[near]) / ((far - near) / 1000)
    ratio = suites[far] / suites[near]
    result = {
        "benchmark": "latency",
        "suites": " ".join(SUITES),
        "first_s": _rounded(first),
        "first_ratio": round(first[far] / first[near], 2),
        "suites_s": _rounded(suites),
        "ratio": round(ratio, 2),
        "limit_ratio": SLOWER,
        "selection": " ".join(arguments.selection),
        "selection_s": _rounded(small),
        "launch_s": _rounded(launch),
        "round_trips_per_launch": round(trips, 1),
        "limit_round_trips": TRIPS,
        "requests_per_launch": dict(requests),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    return 0 if max(ratio, result["first_ratio"]) <= SLOWER and trips <= TRIPS else 1


def _rounded(took: dict[int, float]) -> dict[str, float]:
    return {str(rtt_ms): round(seconds, 3) for rtt_ms, seconds in took.items()}


if __name__ == "__main__":
    sys.exit(main())
