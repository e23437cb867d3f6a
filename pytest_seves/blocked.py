# SPDX-License-Identifier: GPL-2.0-or-later
"""A broken rig is no failed product: hosts are looked at, and one that has a fault is not used any more.

A look is one round trip: before the first test of each suite (a directory), after a test that did not pass,
and at the end. An xdist worker looks for itself. The first fault blocks the host: its other tests are errors
at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Failed  # pytest.fail.Exception, which type checkers do not know

from .errors import KernelOops, RigError, Undecided, UsageError
from .options import Options
from .source import Source

if TYPE_CHECKING:
    from pathlib import Path

    from .errors import HostError
    from .host.target import Target

EXIT_BLOCKED = 69
"""Exit status of a run that failed nothing but had a host blocked: sysexits.h's EX_UNAVAILABLE."""


class HostBlocked(Failed):
    """The test's host has a fault; the test was not run."""

    __module__ = "builtins"  # as pytest's own have it: shown without a module


class Watch:
    """Looks at the hosts, in the controller and in each xdist worker; a plugin.

    :param worker: name of the xdist worker; empty in the controller.
    """

    def __init__(self, options: Options, hosts: Source, worker: str) -> None:
        self._options = options
        self._hosts = hosts
        self._worker = worker
        self._blocked: dict[str, str] = {}
        self._suites: set[tuple[str, Path]] = set()
        self._explained: list[BaseException] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Refuse a test of a blocked host; look at the host before the first test of a suite."""
        host = self._host(item)
        if host is None:
            return (yield)
        item.user_properties.append(("host", host))
        if host in self._blocked:
            raise HostBlocked(self._blocked[host], pytrace=False)
        result = yield
        target, suite = self._hosts.used(host), (host, item.path.parent)
        if target is not None and target.connected and suite not in self._suites:
            self._suites.add(suite)
            if self._look(target, f"before {item.path.parent.name}"):
                raise HostBlocked(self._blocked[host], pytrace=False)
        return result

    def classify(self, item: pytest.Item, report: pytest.TestReport, error: BaseException) -> None:
        """A broken rig, or a wrong call in a test, is an error and no failure; undecided is neither.

        What is noted on the report crosses xdist with it: `sev_undecided`; `sev_rig`, it is no verdict;
        `sev_blocked`, the host's fault, where that was found.
        """
        broken = isinstance(error, (RigError, HostBlocked))
        host = self._host(item)
        target = self._hosts.used(host) if host else None
        if target is not None and report.failed and target.name not in self._blocked:
            found = self._after(target, item, error)
            broken |= found is not None and not isinstance(found, KernelOops)  # which the guest may have made
        fault = self._blocked.get(host or "") or (str(error) if isinstance(error, HostBlocked) else None)
        if fault and report.failed:
            report.sev_blocked = fault  # type: ignore[attr-defined]
            report.sections.append(("host", fault))
        if broken:
            report.sev_rig = True  # type: ignore[attr-defined]
        elif isinstance(error, Undecided):
            report.sev_undecided = True  # type: ignore[attr-defined]
        if report.when == "call" and (broken or isinstance(error, UsageError)):
            report.when = "setup"  # pytest, JUnit and xdist alike then speak of an error, not of a failure

    def finish(self) -> dict[str, str]:
        """Look at every host a last time; what blocked those that are blocked, by host."""
        for target in self._hosts.connected():
            if target.name not in self._blocked:
                self._look(target, "at the end")
        return self._blocked

    def _host(self, item: pytest.Item) -> str | None:
        if "sev_host" not in getattr(item, "fixturenames", ()):
            return None
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        return str(parameters.get("sev_host", self._options.hosts[0]))

    def _after(self, target: Target, item: pytest.Item, error: BaseException) -> HostError | None:
        if any(error is known for known in self._explained):  # of a launch that several tests share
            return None
        if isinstance(error, RigError):
            self._explained.append(error)
        return self._look(target, f"in {item.nodeid}", error)

    def _look(self, target: Target, when: str, error: BaseException | None = None) -> HostError | None:
        from .host.health import describe, unread

        fault = target.fault(error)
        note = unread(target.health.last) if target.health.last else None
        if fault is not None:
            more = f" ({note})" if note else ""
            self._blocked[target.name] = f"blocked: {target.name}: {describe(fault)}, {when}{more}"
        if self._options.artifacts:
            row = {
                "time": time.time(),
                "when": when,
                "worker": self._worker,
                "fault": self._hosts.without_keys(str(fault or "")),
                "note": note,
            }
            folder = self._options.artifacts / target.name
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "health.jsonl").open("a") as file:  # workers add whole lines to one file
                file.write(json.dumps({**row, "seen": target.health.last}) + "\n")
        return fault


class Blocked:
    """What was blocked in a whole run, and its exit status; a plugin of the controller."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}
        self._ran: dict[str, set[str]] = {}
        self._refused: dict[str, set[str]] = {}
        self._failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the tests of each host, and those that were not run on it."""
        host = dict(report.user_properties).get("host")
        self._failed |= report.failed and not getattr(report, "sev_rig", False)
        if host is None:
            return
        why = getattr(report, "sev_blocked", None)
        refused = why is not None and report.longreprtext.startswith("blocked: ")
        (self._refused if refused else self._ran).setdefault(str(host), set()).add(report.nodeid)
        if why:
            self._why.setdefault(str(host), why)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: pytest.TestReport) -> None:
        """A worker that crashed is a broken rig."""
        report.when = "setup"
        report.sev_rig = True  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What an xdist worker found at its end."""
        self.add(getattr(node, "workeroutput", {}).get("sev_blocked", {}))

    def add(self, found: dict[str, str]) -> None:
        """Note hosts that were found to have a fault."""
        for host, why in found.items():
            self._why.setdefault(host, why)

    def exit_status(self, status: int) -> int:
        """pytest's status, or :data:`EXIT_BLOCKED`; failed wins over blocked."""
        mere = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self._failed
        return EXIT_BLOCKED if self._why and mere else status

    def rows(self) -> dict[str, dict[str, Any]]:
        """By host: `why`, and `after` how many `of` its tests."""
        return {host: {"why": why, **self._counts(host)} for host, why in sorted(self._why.items())}

    def _counts(self, host: str) -> dict[str, int]:
        ran, refused = self._ran.get(host, set()), self._refused.get(host, set())
        return {"after": len(ran - refused), "of": len(ran | refused)}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A line for each blocked host."""
        for host, row in self.rows().items():
            fault = [*row["why"].split(": ", 3), "a fault"][2]  # of `blocked: HOST: FAULT: ...`
            line = f"{host}: blocked by {fault} after {row['after']} of {row['of']} tests"
            terminalreporter.section("blocked", red=True)
            terminalreporter.line(line, red=True)
            terminalreporter.line(f"  {row['why']}")
