# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest's side of pytest-seves. Thin: nothing that costs time is imported until a host is used."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from .fixtures import kvm, launch_guest, sev_host
from .options import add_options, join_words, read_options, refuse_directories_as_words, share_launches
from .reports import make_harmless

if TYPE_CHECKING:
    from .run import Run

__all__ = ["kvm", "launch_guest", "sev_host"]  # fixtures: pytest finds them in this module

RUN: pytest.StashKey[Run] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; where hosts are named, take up the run."""
    config.addinivalue_line(
        "markers", "requirement(id): the requirement of the catalogue that the test decides"
    )
    config.addinivalue_line(
        "markers",
        "slow: beside requirement: takes minutes, and is left out unless --sev-slow or -m asks for it",
    )
    refuse_directories_as_words(config)
    options = read_options(config)
    if options.hosts:
        from . import run as running

        share_launches(config)
        join_words(config)
        config.stash[RUN] = run = running.Run(config, options)
        config.pluginmanager.register(run, "sev-run")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--sev-check`: readiness instead of tests; `--sev-provision`: the hosts are made ready."""
    provision = config.getoption("sev_provision")
    if not (config.getoption("sev_check") or provision):
        return None
    from . import run as running

    refuse_directories_as_words(config)
    run = running.Run(config, read_options(config))
    return run.provision(provision) if provision else run.check()


@pytest.hookimpl(trylast=True)  # a test's own parameters come first in its id
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Default values of `vcpus` and `policy` for tests that launch guests; one round for each host."""
    if "sev_host" in metafunc.fixturenames:  # launch_guest asks for it
        from .collection import parametrize

        parametrize(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tie tests to the catalogue; leave out the slow ones."""
    if any(item.get_closest_marker("requirement") for item in items):
        from .collection import leave_out_slow, tie
        from .errors import UsageError

        try:
            tie(config, items)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        leave_out_slow(config, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell a broken rig, and a requirement that could not be decided, from a failed one."""
    report = yield
    run = item.config.stash.get(RUN, None)
    if run is not None:
        if call.excinfo is not None:
            run.classify(item, report, call.excinfo.value)
        run.note_evidence(item, report)
        if "sev_host" in getattr(item, "fixturenames", ()):
            make_harmless(report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Undecided is neither passed nor failed, and never green."""
    if getattr(report, "sev_undecided", False):
        return "undecided", "U", ("UNDECIDED", {"yellow": True})
    return None


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show the answer to a direct call beside the name of its errno, which alone says little."""
    parts = left if isinstance(left, tuple) else (left,)
    answer = next((part.answer for part in parts if isinstance(part, str) and hasattr(part, "answer")), None)
    return None if answer is None else [f"{left!r} {op} {right!r}, as answered: {answer}"]
