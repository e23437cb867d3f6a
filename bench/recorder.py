# SPDX-License-Identifier: GPL-2.0-or-later
"""What recording costs a launch: QEMU with a plain guest on the real /dev/kvm, from its fork to its end.

Rounds take turns: bare, under strace (every ioctl, entry and exit, no payloads), under the recorder with a
filter ("trace") and with system call stops ("stop"). The recorder is forked and called as the agent does it,
so that the start of a Python is no part of it. Prints one JSON object, and a table to stderr.

Usage: python bench/recorder.py [--vcpus N] [--rounds N] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pytest_seves.agent import recorder

RESULTS = Path(__file__).parent / "results" / "recorder.json"
#: The recorder may cost what strace costs.
LIMIT_RATIO = 1.0
STRACE = ["strace", "-f", "--seccomp-bpf", "-e", "trace=ioctl", "-o", "/dev/null"]

Variant = Callable[[int, int], int]


def qemu(vcpus: int) -> list[str]:
    """A guest that runs until QEMU has read its monitor."""
    options = "-accel kvm -machine q35 -m 64 -nodefaults -display none -no-shutdown -monitor stdio"
    return ["qemu-system-x86_64", *options.split(), "-smp", str(vcpus)]


def executed(argv: list[str]) -> Variant:
    """Become a program."""

    def become(stdin: int, null: int) -> int:
        for target, source in enumerate((stdin, null, null)):
            os.dup2(source, target)
        os.execvp(argv[0], argv)

    return become


def recorded(argv: list[str], mode: str) -> Variant:
    """Become a recorder."""

    def become(stdin: int, null: int) -> int:
        stdio = {0: stdin, 1: null, 2: null}
        return recorder.record(argv, out_fd=null, status_fd=null, mode=mode, stdio=stdio)

    return become


def life_s(variant: Variant) -> float:
    """Seconds from the fork to the end.

    :raise SystemExit: it failed.
    """
    stdin, monitor = os.pipe()
    os.write(monitor, b"quit\n")
    os.close(monitor)
    null = os.open(os.devnull, os.O_RDWR)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = variant(stdin, null)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    took_s = time.monotonic() - started
    os.close(stdin)
    os.close(null)
    if status:
        sys.exit(f"the launch failed with wait status {status:#x}")
    return took_s


def measure(vcpus: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round by variant."""
    argv = qemu(vcpus)
    variants = {"bare": executed(argv)}
    if shutil.which("strace"):
        variants["strace"] = executed(STRACE + argv)
    variants |= {mode: recorded(argv, mode) for mode in ("trace", "stop")}
    took_ms: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            took_ms[name].append(round(life_s(variant) * 1000, 1))
    return took_ms


def save(result: dict[str, object]) -> None:
    """Append to the committed results."""
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*results, result], indent=1) + "\n")


def main() -> int:
    """Run the benchmark; 1 when recording costs more than strace does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vcpus", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help=f"append to {RESULTS.name}")
    arguments = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print(json.dumps({"benchmark": "recorder", "skipped": "no /dev/kvm that this user may open"}))
        return 0
    took_ms = measure(arguments.vcpus, arguments.rounds)
    median = {name: statistics.median(values) for name, values in took_ms.items()}
    result: dict[str, object] = {
        "benchmark": "recorder",
        "date": datetime.now(UTC).date().isoformat(),
        "vcpus": arguments.vcpus,
        "rounds": arguments.rounds,
        "median_ms": {name: round(value, 1) for name, value in median.items()},
        "min_ms": {name: min(values) for name, values in took_ms.items()},
        "ratio_to_bare": {name: round(value / median["bare"], 2) for name, value in median.items()},
        "limit_ratio_to_strace": LIMIT_RATIO,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
    }
    for name, value in median.items():
        print(
            f"{name:8} {value:8.1f} ms  min {min(took_ms[name]):8.1f}  {value / median['bare']:5.2f} x bare",
            file=sys.stderr,
        )
    if arguments.save:
        save(result)
    print(json.dumps(result, indent=2))
    return int("strace" in median and median["trace"] > LIMIT_RATIO * median["strace"])


if __name__ == "__main__":
    sys.exit(main())
