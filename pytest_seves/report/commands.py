# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of ``pytest-seves`` about reports. What each needs is imported when it is called."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import UsageError
from pytest_seves.evidence.bundle import Bundle
from pytest_seves.text import one_line

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

#: Modules outside the core, and what brings them.
_EXTRA = "jinja2", "securesystemslib", "fastjsonschema", "leather"
NO_PASSPHRASE = (
    "the key is encrypted, and this is no terminal to ask on: {option} NAME names an environment variable"
)


def declare(commands: Any) -> None:
    """Add the commands to the parser of the console script."""
    report = commands.add_parser("report", help="make the qualification report of an archived bundle")
    report.add_argument("bundle", type=Path, help="what --sev-artifacts left")
    report.add_argument("--output", type=Path, required=True, metavar="DIR")
    report.add_argument("--sign-key", type=Path, metavar="FILE", help="ed25519 private key in PEM")
    report.add_argument(
        "--sign-passphrase",
        metavar="NAME",
        help="environment variable with the key's passphrase (default: ask)",
    )
    report.set_defaults(run=_report)
    verify = commands.add_parser(
        "verify",
        help="check a qualification report offline",
        description="Exit status: 0 all holds, and the signature is by the given key; 1 something is wrong; "
        "2 nothing was found wrong, but not everything could be checked, such as an unsigned report.",
    )
    verify.add_argument("report", type=Path, metavar="DIR")
    verify.add_argument("--key", type=Path, metavar="PUBLIC.pem", help="the signer's ed25519 public key")
    verify.add_argument(
        "--bundle", type=Path, metavar="DIR", help="the bundle, if it does not lie with the report"
    )
    verify.set_defaults(run=_verify)
    trend = commands.add_parser("trend", help="many runs on one page: changes, flakes, launch times")
    trend.add_argument(
        "bundles", type=Path, nargs="+", metavar="DIR", help="what --sev-artifacts or --sev-report left"
    )
    trend.add_argument("--output", type=Path, default=Path("trend.html"), metavar="FILE")
    trend.set_defaults(run=_trend)


def signer(file: Path, variable: str | None, option: str) -> CryptoSigner:
    """What signs, by a key file.

    :param variable: the environment variable with its passphrase; None: ask on the terminal.
    :param option: that names the variable, for messages.
    :raise UsageError: there is no such key, or no way to its passphrase.
    """
    require()
    from .signature import private_key

    return private_key(file, passphrase(file, variable, option))


def passphrase(file: Path, variable: str | None, option: str) -> Callable[[], bytes]:
    """Gives the passphrase of a key when it turns out to be encrypted."""

    def ask() -> bytes:
        if variable is not None:
            if variable not in os.environ:
                raise UsageError(f"{option} {variable}: there is no such environment variable")
            return os.environ[variable].encode()
        if not sys.stdin.isatty():
            raise UsageError(f"{file}: " + NO_PASSPHRASE.format(option=option))
        try:
            return getpass.getpass(f"passphrase of {file}: ").encode()
        except EOFError:
            raise UsageError(f"{file}: no passphrase was typed") from None

    return ask


def require() -> None:
    """Refuse to begin without what reports are made with.

    :raise UsageError: says how to get it.
    """
    from importlib.util import find_spec

    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise UsageError(f"reports need {', '.join(missing)}: pip install 'pytest-seves[report]'")


def _report(given: argparse.Namespace) -> int:
    require()
    from . import qualify

    key = signer(given.sign_key, given.sign_passphrase, "--sign-passphrase") if given.sign_key else None
    report = qualify.write(Bundle.open(given.bundle), given.output, key)
    for line in told(report, given.output / qualify.PAGE):
        print(line)
    return 0


def told(report: dict[str, Any], page: Path) -> list[str]:
    """What a report came to, in a few lines for a terminal."""
    lines = [f"{one_line(stamp)}" for stamp in report["stamps"]]
    for name, host in report["hosts"].items():
        levels = [
            f"{level['name']} {'reached' if level['reached'] else 'not reached'}" for level in host["levels"]
        ]
        lines.append(one_line(f"{name}: {', '.join(levels) or 'no levels.toml'}"))
    signing = report["signing"]
    return [*lines, f"report: {page} ({'signed by ' + signing['keyid'][:16] if signing else 'unsigned'})"]


def _verify(given: argparse.Namespace) -> int:
    require()
    from .signature import public_key
    from .verify import verify

    try:
        key = public_key(given.key) if given.key else None
        if not given.report.is_dir():
            raise UsageError(f"{given.report}: wanted the directory of a report, got no directory")
    except UsageError as error:
        print(f"pytest-seves verify: {error}", file=sys.stderr)
        return 2
    found = verify(given.report, key, given.bundle)
    for head, lines in (
        ("WRONG", found.wrong),
        ("holds", found.holds),
        ("not checked", found.open),
        ("for you to judge", found.trust),
    ):
        for line in lines:
            print(f"{head}: {one_line(line)}")
    words = ("VERIFIED", "NOT VERIFIED: do not rely on it", "NOT VERIFIED: not everything could be checked")
    print(", ".join([words[found.status], *map(one_line, found.stamps)]))
    return found.status


def _trend(given: argparse.Namespace) -> int:
    require()
    from .trend import page, read

    content = page([read(folder) for folder in given.bundles])
    given.output.write_bytes(content)
    print(f"trend of {len(given.bundles)} runs: {given.output}")
    return 0
