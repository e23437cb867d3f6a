# SPDX-License-Identifier: GPL-2.0-or-later
"""Collected tests: their default parameters and their requirements."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from .guest.spec import policy_name
from .options import Options, read_options
from .properties import note_case
from .report import catalogue
from .spec.sev import Policy


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Default values of `vcpus`, `policy` and `init_path`; one round for each host when there are several.

    `init_path` comes with the two others: None, and INIT2 with one of the policies.
    """
    own = {name.strip() for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark)}
    wanted = set(metafunc.fixturenames) - own
    options = read_options(metafunc.config)
    if wanted >= {"vcpus", "policy", "init_path"}:
        names, cases = ("vcpus", "policy", "init_path"), _launches(options)
        metafunc.parametrize(names, cases, ids=["-".join(_words(*case)) for case in cases])
        wanted -= set(names)
    if "vcpus" in wanted:
        metafunc.parametrize("vcpus", options.vcpus, ids=lambda count: f"{count}vcpu")
    if "policy" in wanted:
        metafunc.parametrize("policy", options.policies, ids=policy_name)
    if "sev_host" in wanted and len(options.hosts) > 1:
        metafunc.parametrize("sev_host", options.hosts, indirect=True, scope="session")


def _launches(options: Options) -> list[tuple[int, int, str | None]]:
    """Each count with each policy on the VMM's own init path, and each count on KVM_SEV_INIT2 as well."""
    own = [(vcpus, policy, None) for policy in options.policies for vcpus in options.vcpus]
    es = [policy for policy in options.policies if policy & Policy.ES][:1]
    return [*own, *((vcpus, policy, "INIT2") for policy in es for vcpus in options.vcpus)]


def _words(vcpus: int, policy: int, init_path: str | None) -> list[str]:
    return [f"{vcpus}vcpu", policy_name(policy), *([init_path] if init_path else [])]


def _names(mark: pytest.Mark) -> Iterable[str]:
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return names.split(",") if isinstance(names, str) else names


def tie(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check each test's requirement against the catalogue and note it for every report.

    Under `--strict`, also: every test beside a catalogue names a requirement, and every requirement of a
    family that has tests has one.

    :raise pytest.UsageError: something does not match; all mismatches are listed.
    """
    wrong: list[str] = []
    tied: dict[Path, set[str]] = {}
    for item in items:
        marker = item.get_closest_marker("requirement")
        path = catalogue.find(item.path.parent)
        if marker is None:
            if path is not None and config.getini("strict"):
                wrong.append(f"{item.nodeid}: names no requirement")
            continue
        identifier = marker.args[0] if len(marker.args) == 1 and not marker.kwargs else None
        if path is None or identifier not in catalogue.load(path):
            wrong.append(f"{item.nodeid}: no requirement {identifier!r} in {path or catalogue.CATALOGUE}")
            continue
        tied.setdefault(path, set()).add(str(identifier))
        note_case(item, str(identifier), catalogue.load(path)[str(identifier)].level)
    if config.getini("strict"):
        wrong += _untested(tied)
    if wrong:
        raise pytest.UsageError("requirements and tests do not match:\n  " + "\n  ".join(wrong))


def leave_out_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect conformance tests that are marked slow, unless `--sev-slow` or a word of `-m` asks for them.

    Other tests may be marked so for reasons of their own.
    """
    if config.getoption("sev_slow") or "slow" in str(config.getoption("markexpr", "")):
        return
    left = [
        item for item in items if item.get_closest_marker("slow") and item.get_closest_marker("requirement")
    ]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def _untested(tied: dict[Path, set[str]]) -> list[str]:
    missing = []
    for path, tested in tied.items():
        known = catalogue.load(path)
        families = {known[identifier].family for identifier in tested}
        missing += [f"{i}: no test" for i, r in known.items() if r.family in families and i not in tested]
    return missing
