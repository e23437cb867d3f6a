# SPDX-License-Identifier: GPL-2.0-or-later
"""``pytest-seves diff A B``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pytest_seves.errors import EvidenceError


def declare(commands: Any) -> None:
    """Add the command to the parser of the console script."""
    diff = commands.add_parser(
        "diff",
        help="compare two runs, by what --sev-artifacts left of them",
        description="Verdicts, facts of the hosts, and of each guest that both launched: the first differing "
        "ioctl, and the first difference in what was measured. Exit status: 0 equal, 1 different, 2 trouble.",
    )
    diff.add_argument("left", type=Path, metavar="A")
    diff.add_argument("right", type=Path, metavar="B")
    diff.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print what differs."""
    from pytest_seves.evidence.bundle import Bundle
    from pytest_seves.text import one_line

    from .diff import compare, lines

    try:
        comparison = compare(Bundle.open(given.left), Bundle.open(given.right))
    except EvidenceError as error:
        print(f"pytest-seves: {one_line(str(error))}", file=sys.stderr)
        return 2
    for line in lines(comparison, "A", "B"):
        print(one_line(line))
    return 0 if comparison.equal else 1
