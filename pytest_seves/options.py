# SPDX-License-Identifier: GPL-2.0-or-later
"""Command line options and ini values; names are fixed, people script against them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .errors import EvidenceError
from .text import one_line

if TYPE_CHECKING:
    from .evidence.bundle import About

VCPUS = "1,2,3,8,16,64"
ES_POLICIES = "0x4,0x5,0x6,0x7"
_DIRECTORIES = ("--sev-lab", "--sev-artifacts", "--sev-report", "--sev-replay")
_KEEP_MIN = 30.0
_KEEP_MOST_MIN = 24 * 60.0
_U32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Options:
    """The plugin's options, command line before ini."""

    hosts: tuple[str, ...]
    lab: Path
    check: bool
    provision: str | None
    artifacts: Path | None
    report: Path | None
    sign_key: Path | None
    sign_passphrase: str | None
    replay: Path | None
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
    group.addoption(
        "--sev-replay",
        metavar="DIR",
        help="judge the evidence that --sev-artifacts left in DIR, with no host and no VMM; hosts, vCPU "
        "counts and policies are those of that run unless given",
    )
    _add(
        parser,
        group,
        "sev_report",
        "string",
        "directory for a qualification report; the evidence goes below it, if --sev-artifacts names no other",
    )
    group.addoption(
        "--sev-sign-key", metavar="FILE", help="sign the report with this ed25519 private key, in PEM"
    )
    group.addoption(
        "--sev-sign-passphrase",
        metavar="NAME",
        help="environment variable with that key's passphrase, if it has one (default: ask on the terminal)",
    )
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

    if config.getoption("sev_replay"):
        return _of_replay(config, folder("sev_replay", ""))
    report = folder("sev_report", "") if value("sev_report") else None
    artifacts = folder("sev_artifacts", "") if value("sev_artifacts") else report and report / "evidence"
    key = config.getoption("sev_sign_key")
    if key and not report:
        raise pytest.UsageError("--sev-sign-key signs a report: give --sev-report DIR with it")
    return Options(
        hosts=tuple(dict.fromkeys(value("sev_host") or ())),
        lab=folder("sev_lab", "lab"),
        check=bool(config.getoption("sev_check")),
        provision=config.getoption("sev_provision"),
        artifacts=artifacts,
        report=report,
        sign_key=(config.invocation_params.dir / key).resolve() if key else None,
        sign_passphrase=config.getoption("sev_sign_passphrase"),
        replay=None,
        defects=tuple(dict.fromkeys(value("sev_defect") or ())),
        vcpus=_numbers("--sev-vcpus", value("sev_vcpus") or VCPUS, least=1, most=4096),
        policies=_numbers("--sev-policy", value("sev_policy") or ES_POLICIES, least=0, most=_U32),
        keep_failed=config.getoption("sev_keep_failed"),
    )


def _of_replay(config: pytest.Config, root: Path) -> Options:
    """The options of a replay: those of the recorded run, but for what the command line says.

    :raise pytest.UsageError: there is no bundle, or an option that only a host can heed.
    """
    for name in ("sev_check", "sev_provision", "sev_artifacts", "sev_defect", "sev_keep_failed", "sev_lab"):
        if config.getoption(name):
            option = "--" + name.replace("_", "-")
            raise pytest.UsageError(
                f"--sev-replay: no host is used, so {option} cannot be heeded: leave it out"
            )
    if config.getoption("sev_report") or config.getoption("sev_sign_key"):
        raise pytest.UsageError(
            "--sev-replay qualifies nothing anew: `pytest-seves report BUNDLE --output DIR` makes the report "
            "of a bundle, and signs it"
        )
    try:
        about = _recorded(root)
    except EvidenceError as error:
        raise pytest.UsageError(f"--sev-replay: {error}") from None
    hosts = tuple(dict.fromkeys(config.getoption("sev_host") or about.hosts))
    for unknown in [host for host in hosts if host not in about.hosts]:
        there = ", ".join(map(one_line, about.hosts)) or "none"
        raise pytest.UsageError(f"--sev-replay: {root} has no host {unknown!r}; it has {there}")
    if not hosts:
        raise pytest.UsageError(f"--sev-replay: {root} has no host, so there is nothing to judge")
    given = {name: config.getoption(name) for name in ("sev_vcpus", "sev_policy")}
    return Options(
        hosts=hosts,
        lab=root,
        check=False,
        provision=None,
        artifacts=None,
        report=None,
        sign_key=None,
        sign_passphrase=None,
        replay=root,
        defects=tuple(map(one_line, about.defects)),
        vcpus=_numbers("--sev-vcpus", given["sev_vcpus"] or _joined(about.vcpus), least=1, most=4096),
        policies=_numbers("--sev-policy", given["sev_policy"] or _joined(about.policies), least=0, most=_U32),
        keep_failed=None,
    )


@cache
def _recorded(root: Path) -> About:
    from .evidence.bundle import read_about  # decodes timelines too: not for a run without evidence

    return read_about(root)


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


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
        named = option in _DIRECTORIES and (here / word).exists()
        if named and not (here / word).resolve().is_relative_to(here):
            raise pytest.UsageError(
                f"{option} {word}: write {option}={word}. As two words, pytest takes an existing directory "
                "elsewhere for a path of tests, and its root directory from it"
            )


def join_words(config: pytest.Config) -> None:
    """Write ``--sev-artifacts DIR`` as one word for xdist's workers, which parse the arguments again.

    The directory may be there by then, and a worker would take it for a path of tests.
    """
    given = config.invocation_params
    words: list[str] = []
    for word in map(str, given.args):
        if words and words[-1] in _DIRECTORIES:
            words[-1] += f"={word}"
        else:
            words.append(word)
    config.invocation_params = config.InvocationParams(args=words, plugins=given.plugins, dir=given.dir)


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
