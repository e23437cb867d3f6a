# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a replay of a full run takes, and what writing its bundle costs the run.

Records the default run on the model with two workers, unless a bundle is given, and replays it in a process
of its own. Writing is timed by writing every launch of it once more, and compared with the time that the
run's tests took. Prints one JSON object.

Usage: python bench/replay.py [--bundle DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_seves.evidence.bundle import Bundle
from pytest_seves.guest.archive import Archive
from pytest_seves.guest.spec import GuestSpec

PROJECT = Path(__file__).resolve().parents[1]
LIMIT_S = 10.0
#: Of the run's time, what writing may take.
LIMIT_SHARE = 0.05


def run(*arguments: str) -> tuple[float, float, str]:
    """Seconds and CPU seconds of a run of the suites, and what it printed.

    :raise SystemExit: it failed.
    """
    argv = [sys.executable, "-m", "pytest", "suites", "-q", "-p", "no:cacheprovider", *arguments]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(argv, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        told = output.read().decode(errors="replace")
    if process.returncode != 0:
        sys.exit(f"{' '.join(argv)} exited with {process.returncode}:\n{told}")
    return took_s, usage.ru_utime + usage.ru_stime, told


def writing_s(bundle: Bundle, folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of writing every launch of a bundle."""
    launches = [(manifest, bundle.launch(manifest)) for manifest in bundle.manifests]
    archive, more = Archive(folder, "again"), ("started", "ended", "environment", "measurement")
    start, cpu = time.perf_counter(), time.process_time()
    for manifest, launch in launches:
        spec = GuestSpec(vcpus=int(manifest.spec["vcpus"]), policy=manifest.spec["policy"])
        given = {name: manifest.raw[name] for name in more}
        archive.launch(launch, spec, manifest.spec, str(manifest.raw["kind"]), given)
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> int:
    """Run the benchmark; 1 past a limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="a bundle of a full run (default: record one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as name:
        root = given.bundle.resolve() if given.bundle else Path(name) / "bundle"
        if not given.bundle:
            run("--sev-host=model", "-n2", f"--sev-artifacts={root}")
        bundle = Bundle.open(root)
        replay_s, replay_cpu_s, told = run(f"--sev-replay={root}", "-n0")
        written_s, written_cpu_s = writing_s(bundle, Path(name) / "again")
    tests_s = sum(result.duration_s for result in bundle.results)
    result = {
        "benchmark": "replay",
        "tests": len(bundle.results),
        "launches": len(bundle.manifests),
        "bytes": sum(int(f["size"]) for m in bundle.manifests for f in m.files.values()),
        "changed_verdicts": 0 if ", 0 changed." in told else "some",
        "replay_s": round(replay_s, 2),
        "replay_cpu_s": round(replay_cpu_s, 2),
        "limit_s": LIMIT_S,
        "tests_of_the_run_s": round(tests_s, 1),
        "writing_s": round(written_s, 2),
        "writing_cpu_s": round(written_cpu_s, 2),
        "writing_share": round(written_s / tests_s, 4),
        "limit_share": LIMIT_SHARE,
    }
    print(json.dumps(result, indent=2))
    good = replay_s <= LIMIT_S and written_s / tests_s <= LIMIT_SHARE and result["changed_verdicts"] == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
