# SPDX-License-Identifier: GPL-2.0-or-later
"""Command line options and ini values; names are fixed, people script against them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

VCPUS = "1,2,3,8,16,64"
ES_POLICIES = "0x4,0x5,0x6,0x7"
_KEEP_MIN = 30.0
_KEEP_MOST_MIN = 24 * 60.0


@dataclass(frozen=True)
class Options:
    """The plugin's options, command line before ini."""

    hosts: tuple[str, ...]
    lab: Path
    check: bool
    provision: str | None
    artifacts: Path | None
    defects: tuple[str, ...]
    vcpus: tuple[int, ...]
    policies: tuple[int, ...]
    keep_failed: float | None


def add_options(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("sev", "SEV-ES conformance (pytest-seves)")
    _add(
        parser,
        group,
        "sev_host",
        "args",
        "a host to judge, by its file in the lab directory, or 'model' (repeatable)",
    )
    _add(parser, group, "sev_lab", "string", "directory with one TOML file per host (default: lab)")
    group.addoption(
        "--sev-check", action="store_true", help="print whether the hosts are ready for SEV-ES, and stop"
    )
    group.addoption(
        "--sev-provision",
        nargs="?",
        const="check",
        choices=("check", "apply", "revert"),
        help="bring the hosts to the [provision] of their lab files, or back, and stop; "
        "check (the default) prints the plan and changes nothing",
    )
    _add(parser, group, "sev_vcpus", "list", f"vCPU counts for tests that name none (default: {VCPUS})")
    _add(parser, group, "sev_policy", "list", f"policies for tests that name none (default: {ES_POLICIES})")
    _add(parser, group, "sev_artifacts", "string", "directory for evidence; created when missing")
    _add(
        parser,
        group,
        "sev_defect",
        "args",
        "make the VMM, or the model's kernel, wrong in a named way, to see the checks fail (repeatable)",
    )
    group.addoption(
        "--sev-slow",
        action="store_true",
        help="also run conformance tests that are marked slow: each takes minutes (-m slow: these alone)",
    )
    group.addoption(
        "--sev-keep-failed",
        metavar="MINUTES",
        nargs="?",
        type=_minutes,
        const=_KEEP_MIN,
        help="when all is done, launch the guest of the first failure again, say how to attach to it, and "
        f"leave it running for so long (default: {_KEEP_MIN:g})",
    )


def _add(parser: pytest.Parser, group: pytest.OptionGroup, name: str, kind: str, text: str) -> None:
    option = "--" + name.replace("_", "-")
    if kind == "args":
        group.addoption(option, action="append", metavar="NAME", help=text)
        parser.addini(name, text, type="args", default=[])
    else:
        group.addoption(option, metavar="LIST" if kind == "list" else "DIR", help=text)
        parser.addini(name, text, type="string", default="")


def read_options(config: pytest.Config) -> Options:
    """The options of this run; relative directories are taken from where pytest was called."""

    def value(name: str) -> Any:
        given = config.getoption(name)
        return given if given else config.getini(name)

    def folder(name: str, default: str) -> Path:
        if config.getoption(name):
            return (config.invocation_params.dir / str(config.getoption(name)).strip()).resolve()
        return (config.rootpath / (config.getini(name) or default)).resolve()

    wants_artifacts = value("sev_artifacts")
    return Options(
        hosts=tuple(dict.fromkeys(value("sev_host") or ())),
        lab=folder("sev_lab", "lab"),
        check=bool(config.getoption("sev_check")),
        provision=config.getoption("sev_provision"),
        artifacts=folder("sev_artifacts", "") if wants_artifacts else None,
        defects=tuple(dict.fromkeys(value("sev_defect") or ())),
        vcpus=_numbers("--sev-vcpus", value("sev_vcpus") or VCPUS, least=1, most=4096),
        policies=_numbers("--sev-policy", value("sev_policy") or ES_POLICIES, least=0, most=0xFFFFFFFF),
        keep_failed=config.getoption("sev_keep_failed"),
    )


def share_launches(config: pytest.Config) -> None:
    """Where only `-n` was given, distribute as `--dist loadgroup`: no launch is made by every worker."""
    words = [*map(str, config.invocation_params.args), *config.getini("addopts")]
    asked = any(word == "-d" or word.startswith("--dist") for word in words)
    if not asked and getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


def refuse_directories_as_words(config: pytest.Config) -> None:
    """Refuse ``--sev-lab DIR`` as two words where that misleads pytest.

    pytest looks for its root directory before it knows a plugin's options, and takes the second word for a
    path of tests: a directory elsewhere then becomes the root, without our ini file and suites.

    :raise pytest.UsageError: says how to write it.
    """
    words = [str(word) for word in config.invocation_params.args]
    here = config.invocation_params.dir
    for option, word in pairwise(words):
        named = option in ("--sev-lab", "--sev-artifacts") and (here / word).exists()
        if named and not (here / word).resolve().is_relative_to(here):
            raise pytest.UsageError(
                f"{option} {word}: write {option}={word}. As two words, pytest takes an existing directory "
                "elsewhere for a path of tests, and its root directory from it"
            )


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= _KEEP_MOST_MIN:
        raise argparse.ArgumentTypeError(f"{text}: wanted minutes, at most {_KEEP_MOST_MIN:g}")
    return minutes


def _numbers(option: str, text: str, *, least: int, most: int) -> tuple[int, ...]:
    """A list of numbers as people write it: ``1,2,64`` or ``0x5, 0x7``.

    :raise pytest.UsageError: something in it is no number, or out of range.
    """
    numbers = []
    for word in text.split(","):
        try:
            number = int(word, 0)
        except ValueError:
            raise pytest.UsageError(f"{option}: {word.strip()!r} in {text!r}: wanted a number") from None
        if not least <= number <= most:
            raise pytest.UsageError(f"{option}: {word.strip()} in {text!r}: wanted {least} to {most:#x}")
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))
