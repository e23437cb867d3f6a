# SPDX-License-Identifier: GPL-2.0-or-later
"""One run against one or more hosts, in the controller and in every xdist worker."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .blocked import Blocked, Watch
from .errors import EvidenceError, InventoryError, RigError, SevesError, UsageError
from .evidence.bundle import without_host
from .foreseen import Foreseen
from .host.lease import Tenant
from .hosts import Hosts
from .ledger import Ledger
from .options import Options
from .properties import note_guest
from .replay import Replay, Replayed
from .report import catalogue
from .report.junit import obey_schema
from .results import note
from .screen import progress
from .source import Source, Tell
from .text import one_line, plain
from .verdicts import Verdicts

if TYPE_CHECKING:
    from .allure_results import AllureResults
    from .evidence.launch import Launch
    from .guest.seam import Kvm, Launcher, Target
    from .guest.spec import GuestSpec
    from .qualifying import Qualification


_EVIDENCE: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


class Run:
    """State of a run, and a plugin."""

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self.options = options
        self._config = config
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        places, worker = None, ""
        if self._worker is None:
            self._tenant = Tenant.new()
        else:
            places, worker = self._worker["sev_models"], str(self._worker["workerid"])
            self._tenant = Tenant(**self._worker["sev_tenant"])
        try:
            if not options.hosts:
                option = "--sev-provision" if options.provision else "--sev-check"
                raise UsageError(f"{option}: which host? Give --sev-host NAME")
            self._replayed = Replayed(options.replay, options) if options.replay else None
            self._live = (
                None
                if self._replayed
                else Hosts(options, places, worker, self._tenant, self._say, progress(config))
            )
        except (InventoryError, UsageError, EvidenceError) as error:
            raise pytest.UsageError(str(error)) from None
        self._source: Source = self._replayed or self._hosts
        self.watch = Watch(options, self._source, worker)
        config.pluginmanager.register(self.watch, "sev-watch")
        self.allure: AllureResults | None = None
        if getattr(config.option, "allure_report_dir", None) and not (
            config.option.collectonly or options.check
        ):
            from .allure_results import AllureResults

            self.allure = AllureResults(config, options, self._source)
            config.pluginmanager.register(self.allure, "sev-allure")
        self._blocked = Blocked()
        if self._live:
            config.pluginmanager.register(Foreseen(config, self._live, options.defects), "sev-foreseen")
        self._verdicts = Verdicts(config, options, self._source, self._blocked)
        self._ledger: Ledger | None = None
        self._qualification: Qualification | None = None
        if self._replayed:
            config.pluginmanager.register(Replay(self._replayed, options), "sev-replay")
        if self._worker is None:
            if options.artifacts and not (options.check or options.provision):
                self._ledger = Ledger(config, options, self._hosts, options.artifacts, self._tenant.run)
                config.pluginmanager.register(self._ledger, "sev-ledger")
                if options.report and not config.getoption("collectonly"):
                    self._qualification = self._qualify(options, options.report)
                    config.pluginmanager.register(self._qualification, "sev-qualification")
            config.pluginmanager.register(self._verdicts, "sev-verdicts")
            config.pluginmanager.register(self._blocked, "sev-blocked")

    def _qualify(self, options: Options, report: Path) -> Qualification:
        from .qualifying import Qualification

        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture:  # a passphrase may have to be asked for
            capture.suspend(in_=True)
        try:
            return Qualification(options, report)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        finally:
            if capture:
                capture.resume()

    @property
    def _hosts(self) -> Hosts:
        """The hosts of a run that is no replay."""
        if self._live is None:
            raise UsageError("a replay has no hosts")
        return self._live

    def target(self, name: str) -> Target:
        """The host called `name`, connected on first use."""
        return self._source.target(name)

    def launcher(self, item: pytest.Item, target: Target) -> Launcher:
        """`launch_guest` of a test."""
        given = functools.partial(self.given, item)
        return self._source.suite_launcher(target.name, item.nodeid, self._tell(item), given)

    def kvm(self, item: pytest.Item, target: Target) -> Kvm:
        """`kvm` of a test."""
        return self._source.suite_kvm(target.name, item.nodeid, self._tell(item))

    def _tell(self, item: pytest.Item) -> Tell:
        """Note on a test what it judges."""
        judged: list[dict[str, Any]] = item.stash.setdefault(_EVIDENCE, [])

        def tell(folder: str, record: dict[str, Any] | None) -> None:
            if record is not None and record not in judged:
                judged.append(record)
            if folder and ("evidence", folder) not in item.user_properties:
                item.user_properties.append(("evidence", folder))

        return tell

    def check(self) -> int:
        """Print the readiness of every host; 0 when all are ready."""
        from .host import readiness, readiness_table

        ready = True
        for name in self.options.hosts:
            try:
                rows = self._hosts.target(name).readiness
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
        self._source.close()
        return 0 if ready else 1

    def provision(self, mode: str) -> int:
        """Bring every host to what its lab file declares, or back; 0 when all are."""
        from .host.provision import Provisioning

        done, say = True, functools.partial(print, flush=True)
        for name in self.options.hosts:
            entry = self._hosts.entries[name]
            try:
                if entry.model or (not entry.provision and mode != "revert"):
                    where = "the model" if entry.model else entry.file
                    raise UsageError(f"--sev-provision: {where} has no [provision]; lab/README.md shows it")
                with Provisioning(entry, say, progress(self._config), self._tenant) as work:
                    done &= work.run(mode)
            except SevesError as error:
                print(error, file=sys.stderr)
                done = False
        return 0 if done else 1

    def _terminal(self) -> tuple[int, bool]:
        from _pytest.config import create_terminal_writer

        writer = create_terminal_writer(self._config)
        return writer.fullwidth, writer.hasmarkup

    def _say(self, text: str) -> None:
        """Show a line at once, although output is captured. A worker has standard error only."""
        text = plain(text)  # another run's name, a lab's reason
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter = self._config.pluginmanager.getplugin("terminalreporter")
            if self._worker is not None or reporter is None:
                print(text, file=sys.stderr, flush=True)
            else:
                reporter.write_line(text)
                reporter.flush()

    def note(self, item: pytest.Item, target: Target) -> None:
        """Expect a failure where the requirement has a known defect; where there is none, it is noted."""
        marker = item.get_closest_marker("requirement")
        path = catalogue.find(item.path.parent, catalogue.KNOWN_DEFECTS)
        if marker is None or path is None:
            return
        vmm = (target.entry.vmm.name, target.facts.vmm.version)
        kernel = (catalogue.KERNEL, target.facts.kernel_version)
        # With several hosts the name of a test ends with its host's, which the catalogue does not know.
        name = without_host(item.name, target.name)
        for known in catalogue.load_known_defects(path):
            if any(known.affects(marker.args[0], name, *product) for product in (vmm, kernel)):
                reason = f"known defect: {known.what} ({known.reference})"
                item.add_marker(pytest.mark.xfail(raises=AssertionError, strict=False, reason=reason))

    def note_evidence(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Put that on a report."""
        if self.options.artifacts:
            note(report, item, item.stash.get(_EVIDENCE, []))

    def given(self, item: pytest.Item, spec: GuestSpec, launch: Launch) -> None:
        """Note a guest that the test was given."""
        note_guest(item, spec)
        if self.allure is not None:
            self.allure.launched(spec, launch)

    def classify(self, item: pytest.Item, report: pytest.TestReport, error: BaseException) -> None:
        """A broken rig, or a wrong call in a test, is an error and no failure; undecided is neither."""
        self.watch.classify(item, report, error)
        failed = report.failed and report.when == "call" and not hasattr(report, "sev_undecided")
        launcher = getattr(item, "funcargs", {}).get("launch_guest") if self._live else None
        if failed and launcher and launcher.last and not launcher.failed:
            launcher.failed = (item.nodeid, launcher.last)

    def pytest_report_header(self) -> list[str]:
        """Which hosts, and whether something was broken on purpose."""
        replay = [f"sev replay: {self.options.replay}"] if self.options.replay else []
        return [*replay, f"sev hosts: {', '.join(self.options.hosts)}"] + [
            f"sev defect: {name}" for name in self.options.defects
        ]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker where the model hosts are, and which run has them: all workers share them."""
        node.workerinput["sev_tenant"] = asdict(self._tenant)
        try:
            node.workerinput["sev_models"] = self._source.places()
        except RigError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> object | None:
        """With `--dist loadgroup`, our own: by launch."""
        if config.option.dist != "loadgroup":
            return None
        from .scheduling import LaunchScheduling

        return LaunchScheduling(config, log, self.options.hosts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the verdicts; disconnect; in the controller, stop the model hosts."""
        found = self._found() if exitstatus != pytest.ExitCode.INTERRUPTED else {}
        if self.options.keep_failed and exitstatus == pytest.ExitCode.TESTS_FAILED:
            try:
                self._hosts.keep_failed(self.options.keep_failed, self._say)
            except RigError as error:
                self._say(f"the failed guest could not be kept: {error}")
        if self._worker is not None:
            output = self._config.workeroutput  # type: ignore[attr-defined]
            output.update(sev_launches=self._source.counts(), sev_blocked=found)
        else:
            self._blocked.add(found)
            session.exitstatus = self._blocked.exit_status(exitstatus)
            self._verdicts.write()
            self._finish_junit()
        self._source.close()
        if self._ledger and self.options.artifacts:
            self._leave(session, self._ledger, self.options.artifacts)

    def _leave(self, session: pytest.Session, ledger: Ledger, folder: Path) -> None:
        """Seal the bundle, and make the report of it that was asked for."""
        from .qualifying import prepare

        prepare(self._config, self.options, folder, self._verdicts.catalogues)
        sealed = ledger.seal(int(session.exitstatus), self._verdicts.counts(), self._blocked.rows())
        if sealed and self._qualification and not self._qualification.write(folder):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _found(self) -> dict[str, str]:
        """What blocked hosts, now or in the run that is replayed."""
        recorded = self._replayed.bundle.about.blocked if self._replayed else {}
        return {**self.watch.finish(), **{host: one_line(row["why"]) for host, row in recorded.items()}}

    def _finish_junit(self) -> None:
        """pytest has written the file: our hook comes last."""
        given = self._config.getoption("xmlpath", None)
        if given and self._config.getini("junit_family") == "xunit2":
            file = Path(os.path.expandvars(given)).expanduser()  # as pytest does
            if file.is_file():
                obey_schema(file)

    def pytest_unconfigure(self) -> None:
        """Whatever happened before, leave nothing behind."""
        self._source.close()
