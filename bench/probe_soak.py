# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch probe guests on the model in a row, at random: none may hang, and every report must be right.

vCPU counts, policies, init paths (where the VMM has both), scenarios and SIPI vectors are drawn from a seed.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pytest_seves.errors import Undecided, Unsupported
from pytest_seves.evidence.launch import Launch
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.probe import END, Probe
from pytest_seves.guest.steps import Step, console, event
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost

SIZES = (1, 2, 3, 4, 6, 8, 16)
POLICIES = (None, 0x1, 0x4, 0x5, 0x7)
SCENARIOS: dict[str, dict[str, int]] = {
    "boot": {},
    "park": {"rounds": 10},
    "spin": {"rounds": 3},
    "storm": {"rounds": 50},
    "terminate": {"reason_set": 1, "reason_code": 7},
    "triple-fault": {},
    "reset": {},
}
ENDING = ("terminate", "triple-fault", "reset")


def draw(dice: random.Random, paths: tuple[str | None, ...]) -> dict[str, Any]:
    """One launch."""
    scenario, policy = dice.choice(list(SCENARIOS)), dice.choice(POLICIES)
    return {
        "scenario": scenario,
        "vcpus": dice.choice(SIZES),
        "policy": policy,
        "init_path": dice.choice(paths) if policy is not None and policy & 4 else None,
        "sipi_vector": dice.choice((0x08, 0x10, 0x9F)),
        **SCENARIOS[scenario],
    }


def wrong(launch: Launch, drawn: dict[str, Any]) -> str:
    """What is wrong with it; empty if nothing is."""
    ends = drawn["scenario"] in ENDING
    if launch.phase and not ends:
        return launch.account()
    try:
        report = launch.reports[0]
    except Undecided as error:
        return str(error)
    es = drawn["policy"] is not None and drawn["policy"] & 4
    result = "unsupported" if drawn["scenario"] == "terminate" and not es else "ok"
    entry = "reset-block" if es else "sipi-vector"
    entries = ["reset-vector"] + [entry] * (drawn["vcpus"] - 1)
    if (report.result, [cpu.entry for cpu in report.cpus]) != (result, entries):
        return f"wanted {result}, {entries}; got {report}"
    if any(ap.wakes != drawn["rounds"] or ap.spurious for ap in report.parked):
        return f"parked: {report.parked}"
    if any(storm.bad for storm in report.storms) or report.faults:
        return f"storms {report.storms}, faults {report.faults}"
    kept = (c.canaries.gpr and c.canaries.xmm and c.canaries.cr3 and c.canaries.memory for c in report.held)
    return "" if all(kept) else f"canaries: {report.held}"


def soak(target: Target, launches: int, seed: int) -> dict[str, object]:
    """Launch and judge."""
    dice, paths = random.Random(seed), _paths(target)
    odd: list[dict[str, object]] = []
    seconds: list[float] = []
    for number in range(launches):
        drawn = draw(dice, paths)
        ends = event("SHUTDOWN", "STOP", "RESET")
        steps: list[Step] = [console(END), *([ends] if drawn["scenario"] in ENDING[1:] else [])]
        start = time.monotonic()
        launch = Probe(Launcher(target))(**drawn, steps=steps)
        seconds.append(time.monotonic() - start)
        problem = wrong(launch, drawn)
        if problem:
            odd.append({"launch": number, **drawn, "problem": problem})
    return {
        "launches": launches,
        "seed": seed,
        "init_paths": [path or "own" for path in paths],
        "median_s": round(statistics.median(seconds), 3),
        "slowest_s": round(max(seconds), 3),
        "odd": odd,
    }


def _paths(target: Target) -> tuple[str | None, ...]:
    try:
        Launcher(target)(init_path="INIT2")
    except Unsupported:
        return (None,)
    return (None, "INIT2")


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--launches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", default="linux-6.1")
    parser.add_argument("--vmm", help="another QEMU, for INIT2: 9.1 or later")
    options = parser.parse_args()
    with ExitStack() as stack:
        model = stack.enter_context(ModelHost.start(options.profile))
        host = entry_of(model)
        if options.vmm:
            host = replace(host, vmm=replace(host.vmm, binary=options.vmm))
        result = soak(stack.enter_context(Target(host)), options.launches, options.seed)
    print(json.dumps({"profile": options.profile, **result}, indent=2))
    return 1 if result["odd"] else 0


if __name__ == "__main__":
    sys.exit(main())
