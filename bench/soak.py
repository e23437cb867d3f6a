# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch guests on the model in a row, with random vCPU counts: none may hang, none may lose an event.

Prints one JSON document. An event is lost when the launch of a given size shows fewer register writes,
vCPUs or SEV commands than any other launch of that size.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter

from pytest_seves.evidence.launch import Launch
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.launcher import Launcher
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)


def shape(launch: Launch) -> dict[str, int]:
    """How often each call that a launch must make was recorded."""
    counts = Counter(event.name for event in launch.timeline.events)
    return {
        name: counts[name] for name in sorted(counts) if "SET" in name or "SEV" in name or "CREATE" in name
    }


def soak(target: Target, launches: int, seed: int) -> dict[str, object]:
    """Launch, and compare every launch with the first of its size."""
    dice = random.Random(seed)
    first: dict[int, dict[str, int]] = {}
    odd: list[dict[str, object]] = []
    seconds = []
    for number in range(launches):
        vcpus = dice.choice(SIZES)
        start = time.monotonic()
        launch = Launcher(target)(vcpus=vcpus)
        seconds.append(time.monotonic() - start)
        seen = shape(launch)
        wanted = first.setdefault(vcpus, seen)
        if launch.timeline.stage != Stage.RUNNING or launch.phase or seen != wanted:
            different = {name: (wanted.get(name), seen.get(name)) for name in wanted | seen}
            odd.append(
                {
                    "launch": number,
                    "vcpus": vcpus,
                    "account": launch.account(),
                    "different": {name: pair for name, pair in different.items() if pair[0] != pair[1]},
                }
            )
    return {
        "launches": launches,
        "seed": seed,
        "odd": odd,
        "median_s": round(statistics.median(seconds), 3),
        "slowest_s": round(max(seconds), 3),
    }


def main() -> int:
    """Run the soak; 1 when any launch was odd."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    with ModelHost.start() as model, Target(entry_of(model)) as target:
        result = soak(target, given.launches, given.seed)
    print(json.dumps(result, indent=2))
    return 1 if result["odd"] else 0


if __name__ == "__main__":
    sys.exit(main())
