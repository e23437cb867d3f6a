# SPDX-License-Identifier: GPL-2.0-or-later
"""One run against one or more hosts: connections, launches, verdicts, and the closing table."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .errors import InventoryError, ModelError, RigError, SevesError, Undecided, UsageError
from .guest.defects import DEFECTS, chosen_defects, kernel_settings
from .host.inventory import LabHost, load_host
from .options import Options
from .report import catalogue, listing, summary

if TYPE_CHECKING:
    from .guest.defect import Defect
    from .guest.launcher import Launcher
    from .host.target import Target


class Run:
    """State of a run; registered as a plugin in the controller and in every xdist worker."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self.options = options
        self._config = config
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._stack = ExitStack()
        self._targets: dict[str, Target] = {}
        self._launchers: dict[str, Launcher] = {}
        self._model: dict[str, Any] | None = None
        self._verdicts: dict[tuple[str, str], summary.Tally] = {}
        self._catalogues: set[Path] = set()
        self._collected: dict[str, list[str]] = {}
        self._launches = self._served = 0
        try:
            if not options.hosts:
                raise UsageError("--sev-check: which host? Give --sev-host NAME")
            chosen = chosen_defects(options.defects)
            self._entries = {name: load_host(name, options.lab) for name in options.hosts}
            _require_model(chosen, self._entries.values())
        except (InventoryError, UsageError) as error:
            raise pytest.UsageError(str(error)) from None

    # Hosts

    def target(self, name: str) -> Target:
        """The host called `name`, connected on first use."""
        if name not in self._targets:
            from .host.target import Target

            self._targets[name] = self._stack.enter_context(Target(self._entry(name)))
        return self._targets[name]

    def launcher(self, target: Target) -> Launcher:
        """The factory behind `launch_guest`, one per host."""
        if target.name not in self._launchers:
            from .guest.launcher import Launcher

            folder = self.options.artifacts / target.name if self.options.artifacts else None
            worker = str(self._worker["workerid"]) if self._worker is not None else ""
            self._launchers[target.name] = Launcher(
                target, defects=self.options.defects, artifacts=folder, worker=worker
            )
        return self._launchers[target.name]

    def _entry(self, name: str) -> LabHost:
        entry = self._entries[name]
        if entry.model is None:
            return entry
        model = self._worker["sev_model"] if self._worker is not None else self._start_model(entry.model)
        return replace(
            entry,
            address=model["address"],
            port=model["port"],
            user=model["user"],
            identity=Path(model["identity"]),
            host_key=model["host_key"],
            firmware=entry.firmware
            if entry.firmware.path
            else replace(entry.firmware, path=model["firmware"]),
        )

    def _start_model(self, profile: str) -> dict[str, Any]:
        if self._model is None:
            from .model.host import ModelHost, ModelUnavailable

            if settings := kernel_settings(self.options.defects):
                profile += ("," if ":" in profile else ":") + settings
            try:
                host = self._stack.enter_context(ModelHost.start(profile=profile))
            except ModelUnavailable as error:
                raise ModelError(f"model: {error}") from error
            if self.options.artifacts:
                self._stack.callback(
                    _keep, (host.guest_log, host.firmware_log, host.log), self.options.artifacts / "model"
                )
            self._model = {name: getattr(host, name) for name in ("address", "port", "user", "host_key")}
            self._model.update(identity=str(host.identity), firmware=str(host.firmware))
        return self._model

    def check(self) -> int:
        """Print the readiness of every host; 0 when all are ready."""
        from .host import readiness, readiness_table

        ready = True
        for name in self.options.hosts:
            try:
                rows = self.target(name).readiness
            except SevesError as error:
                print(error, file=sys.stderr)
                ready = False
                continue
            width, colour = self._terminal()
            print(f"{name}\n{readiness_table.render(rows, width, colour)}")
            ready &= readiness.ready(rows)
            if self.options.artifacts:
                folder = self.options.artifacts / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "readiness.json").write_text(readiness_table.to_json(rows) + "\n")
        self._stack.close()
        return 0 if ready else 1

    def _terminal(self) -> tuple[int, bool]:
        from _pytest.config import create_terminal_writer

        writer = create_terminal_writer(self._config)
        return writer.fullwidth, writer.hasmarkup

    # Verdicts

    def note(self, item: pytest.Item, target: Target) -> None:
        """Note the host for every report, and expect a failure where the requirement has a known defect."""
        item.user_properties.append(("host", target.name))
        marker = item.get_closest_marker("requirement")
        path = catalogue.find(item.path.parent, catalogue.KNOWN_DEFECTS)
        if marker is None or path is None:
            return
        vmm = (target.entry.vmm.name, target.facts.vmm.version)
        kernel = (catalogue.KERNEL, target.facts.kernel_version)
        for known in catalogue.load_known_defects(path):
            if any(known.affects(marker.args[0], item.name, *product) for product in (vmm, kernel)):
                reason = f"known defect: {known.what} ({known.reference})"
                item.add_marker(pytest.mark.xfail(raises=AssertionError, strict=True, reason=reason))

    def classify(self, report: pytest.TestReport, error: BaseException) -> None:
        """A broken rig, or a wrong call in a test, is an error and no failure; undecided is neither."""
        if isinstance(error, Undecided):
            report.sev_undecided = True  # type: ignore[attr-defined]  # crosses xdist with the report
        elif isinstance(error, (RigError, UsageError)) and report.when == "call":
            report.when = "setup"  # pytest, JUnit and xdist alike then speak of an error, not of a failure

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tally verdicts, in the controller."""
        properties = dict(report.user_properties)
        requirement = properties.get("requirement")
        decisive = report.when == "call" or report.outcome != "passed"
        if self._worker is None and requirement and decisive:
            host = str(properties.get("host", self.options.hosts[0]))
            tally = self._verdicts.setdefault((host, str(requirement)), summary.Tally())
            test, evidence = report.nodeid.rpartition("::")[2], str(properties.get("evidence", ""))
            tally.add(_outcome(report), test, _why(report), evidence)
            file = self._config.rootpath / report.nodeid.partition("::")[0]
            if path := catalogue.find(file.parent):
                self._catalogues.add(path)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line for each requirement, with counts; of a mere collection, what would be judged."""
        write = terminalreporter
        if self._config.getoption("collectonly"):
            self._list(write)
        if not self._verdicts:
            return
        write.section("requirements on " + ", ".join(self.options.hosts))
        if any(entry.model for entry in self._entries.values()):
            write.line("The model is software: nothing here is a qualification of hardware.", yellow=True)
        for name in self.options.defects:
            culprit = DEFECTS[name].culprit
            write.line(f"--sev-defect {name}: the {culprit} was made wrong on purpose.", yellow=True)
        requirements = [r for path in self._catalogues for r in catalogue.load(path).values()]
        for verdict, line in summary.lines(requirements, self._verdicts, write._tw.fullwidth):
            write.line(line, **_COLOURS.get(verdict, {}))
        launches, served = self._counts()
        write.line(f"{launches} launches served {served} requests for a guest.")
        if self.options.artifacts:
            write.line(f"evidence: {self.options.artifacts}")

    def _list(self, write: Any) -> None:
        if not self._collected or self._config.getoption("verbose") < 0:  # -q: node ids alone, for scripts
            return
        write.section("requirements on " + ", ".join(self.options.hosts))
        requirements = [r for path in self._catalogues for r in catalogue.load(path).values()]
        for line in listing.lines(requirements, self._collected, write._tw.fullwidth):
            write.line(line)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which requirement each collected test decides."""
        for item in session.items:
            requirement = dict(item.user_properties).get("requirement")
            if requirement and (path := catalogue.find(item.path.parent)):
                self._catalogues.add(path)
                self._collected.setdefault(str(requirement), []).append(item.name)

    def _counts(self) -> tuple[int, int]:
        own = self._launchers.values()
        return (
            self._launches + sum(launcher.launched for launcher in own),
            self._served + sum(launcher.served for launcher in own),
        )

    # Life

    def pytest_report_header(self) -> list[str]:
        """Which hosts, and whether something was broken on purpose."""
        return [f"sev hosts: {', '.join(self.options.hosts)}"] + [
            f"sev defect: {name}" for name in self.options.defects
        ]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker where the model host is: all workers share one."""
        profiles = [entry.model for entry in self._entries.values() if entry.model]
        if profiles:
            try:
                node.workerinput["sev_model"] = self._start_model(profiles[0])
            except ModelError as error:
                pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add up what an xdist worker did."""
        launches, served = getattr(node, "workeroutput", {}).get("sev_launches", (0, 0))
        self._launches += launches
        self._served += served

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Disconnect; in the controller, stop the model host."""
        if self._worker is not None:
            self._config.workeroutput["sev_launches"] = self._counts()  # type: ignore[attr-defined]
        elif self.options.artifacts and self._verdicts:
            self._write_verdicts(self.options.artifacts)
        self._stack.close()

    def _write_verdicts(self, folder: Path) -> None:
        verdicts: dict[str, dict[str, Any]] = {}
        for (host, requirement), tally in sorted(self._verdicts.items()):
            counts, first = dict(tally.counts), tally.first
            entry = {"verdict": tally.verdict, "counts": counts, "first": first, "evidence": tally.evidence}
            verdicts.setdefault(host, {})[requirement] = entry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=2) + "\n")

    def pytest_unconfigure(self) -> None:
        """Whatever happened before, leave nothing behind."""
        self._stack.close()


def _keep(logs: Iterable[Path], folder: Path) -> None:
    """What the model wrote down: exits of each guest, commands to its firmware, and what broke in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in logs:
        if log.exists() and log.stat().st_size:
            shutil.copy(log, folder)


def _require_model(defects: Iterable[Defect], hosts: Iterable[LabHost]) -> None:
    """Refuse to make a real host's kernel wrong.

    :raise UsageError: names the defect and the host.
    """
    wrong = next((defect.name for defect in defects if defect.kernel), None)
    real = next((host.name for host in hosts if host.model is None), None)
    if wrong and real:
        raise UsageError(
            f"--sev-defect {wrong}: this defect is one of the model's kernel, and {real} is a real host; "
            "give it --sev-host model alone"
        )


_COLOURS: dict[str, dict[str, bool]] = {
    "passed": {"green": True},
    "failed": {"red": True},
    "error": {"red": True},
    "unexpected pass": {"red": True},
    "undecided": {"yellow": True},
    "known defect": {"yellow": True},
    "skipped": {"yellow": True},
}


def _outcome(report: pytest.TestReport) -> str:
    if getattr(report, "sev_undecided", False):
        return "undecided"
    if hasattr(report, "wasxfail"):
        return "known defect" if report.skipped else "unexpected pass"
    if report.failed and report.longrepr and str(report.longrepr).startswith("[XPASS(strict)]"):
        return "unexpected pass"
    if report.failed and report.when != "call":
        return "error"
    return str(report.outcome)


def _why(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return report.wasxfail.removeprefix("reason: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash else report.longrepr or "")
    return message.partition("\n")[0].removeprefix("pytest_seves.errors.").rstrip(":")[:400]
