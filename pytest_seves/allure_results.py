# SPDX-License-Identifier: GPL-2.0-or-later
"""Allure results in our words: ``--alluredir DIR``, where allure-pytest is installed.

allure-pytest makes a result of each test and hands it to whoever writes it. Just before that the result is
completed here: with the outcome that all reports of ours have, the requirement, the guest, and the launches
that the test was given, as steps. A launch's evidence is one archive, attached to the first test that is
given the launch; the others say which one that is. (Allure 3 gives a file to a single result, and calls it
missed in any other that refers to it.)
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import allure_commons
import pytest
from allure_commons.model2 import (
    Attachment,
    Label,
    Link,
    Parameter,
    StatusDetails,
    TestResult,
    TestResultContainer,
    TestStepResult,
)
from allure_commons.types import LabelType, LinkType, Severity

from . import __version__
from .evidence.archive import archive
from .evidence.launch import Launch
from .evidence.phases import Phase, phases
from .guest.spec import GuestSpec, policy_name
from .options import Options
from .properties import CASE
from .report import allure_files, catalogue
from .report.summary import OUTCOMES
from .reports import LONGEST_LINE, message, outcome
from .source import Source
from .text import plain

_SEVERITY = {"must": Severity.CRITICAL, "should": Severity.NORMAL}
_ZIP = "application/zip"
_NAMES = {"vcpus": "vCPUs", "policy": "policy", "init_path": "init path"}


class AllureResults:
    """A plugin of pytest, and one of Allure; in the one process, in each xdist worker and in the controller.

    :param hosts: what is known of the hosts in this process.
    """

    def __init__(self, config: pytest.Config, options: Options, hosts: Source) -> None:
        self._config = config
        self._options = options
        self._hosts = hosts
        self._folder = Path(config.option.allure_report_dir).absolute()
        self._worker = hasattr(config, "workerinput")
        self._environment: dict[str, str] = {}
        self._later: dict[bytes, TestStepResult] = {}
        self._item: pytest.Item | None = None
        self._reports: list[pytest.TestReport] = []
        self._steps: list[TestStepResult] = []
        self._given: set[bytes] = set()
        allure_commons.plugin_manager.register(self, "sev-allure")
        config.add_cleanup(lambda: allure_commons.plugin_manager.unregister(name="sev-allure"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Remember whose reports and launches come."""
        self._item, self._reports, self._steps, self._given = item, [], [], set()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what the test that is running decided."""
        if self._item is not None and report.nodeid == self._item.nodeid:
            self._reports.append(report)

    def launched(self, spec: GuestSpec, launch: Launch) -> None:
        """Show this launch with the test that is running."""
        key = hashlib.sha256(launch.recording_z).digest()
        if self._item is None or key in self._given:
            return
        self._given.add(key)
        if key in self._later:
            self._steps.append(self._later[key])
            return
        name, file = _name(spec), f"{key.hex()[:32]}-attachment.zip"
        step = _step_of(launch, name)
        where = f"evidence: attached to {self._item.nodeid}"
        told = TestStepResult(name=where, status="passed", start=step.stop, stop=step.stop)
        self._later[key] = TestStepResult(
            name=step.name, status=step.status, start=step.start, stop=step.stop, steps=[*step.steps, told]
        )
        allure_commons.plugin_manager.hook.report_attached_data(body=archive(launch), file_name=file)
        step.attachments.append(Attachment(name=f"evidence, {name}", source=file, type=_ZIP))
        self._steps.append(step)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """A test that its xdist worker died of has a result too: no worker is left to make one."""
        result = TestResult(uuid=str(uuid.uuid4()), name=crashitem.rpartition("::")[2], fullName=crashitem)
        result.status = allure_files.STATUS["error"]
        result.statusDetails = StatusDetails(message=f"error: {message(report)}", trace=report.longreprtext)
        result.start = result.stop = time.time_ns() // 1_000_000
        allure_commons.plugin_manager.hook.report_result(result=result)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What an xdist worker knows of the hosts."""
        self._environment.update(getattr(node, "workeroutput", {}).get("sev_allure", {}))

    def pytest_sessionfinish(self) -> None:
        """Tell of the run and its hosts, beside the results; a worker tells the controller."""
        self._environment.update(_known(self._hosts))
        if self._worker:
            self._config.workeroutput["sev_allure"] = self._environment  # type: ignore[attr-defined]
            return
        model = any(entry.model for entry in self._hosts.entries.values())
        run = {"pytest-seves": __version__, "hosts": ", ".join(self._options.hosts)}
        run |= {"qualification": f"none. {allure_files.MODEL}"} if model else {}
        run |= {"defects": ", ".join(self._options.defects)} if self._options.defects else {}
        for name, text in allure_files.files({**run, **self._environment}, model).items():
            (self._folder / name).write_text(text)

    @allure_commons.hookimpl(tryfirst=True)  # before it is written
    def report_result(self, result: TestResult) -> None:
        """Complete a result."""
        if self._item is None or "sev_host" not in getattr(self._item, "fixturenames", ()):
            return
        self._judge(result)
        properties = {name: str(value) for name, value in self._item.user_properties}
        host = properties.get("host", self._options.hosts[0])
        self._place(result, host)
        self._parameters(result, host, properties)
        if "requirement" in properties:
            self._require(result, properties["requirement"], properties["level"])
        if self._hosts.entries[host].model:
            result.labels.append(Label(LabelType.TAG, "model"))
            result.description = f"{allure_files.MODEL}\n\n{result.description or ''}"
        result.steps += self._steps

    @allure_commons.hookimpl(tryfirst=True)
    def report_container(self, container: TestResultContainer) -> None:
        """Make harmless what fixtures say that failed; leave out a finish that has no outcome."""
        container.afters = [after for after in container.afters if after.status]  # pytest's own
        for fixture in (*container.befores, *container.afters):
            if details := fixture.statusDetails:
                details.message = plain(details.message or "", LONGEST_LINE)
                details.trace = plain(details.trace or "", 10 * LONGEST_LINE)

    def _judge(self, result: TestResult) -> None:
        """The outcome, as the table at the end of the run has it."""
        decisive = [r for r in self._reports if r.when == "call" or r.outcome != "passed"]
        if not decisive:
            return
        worst = min(decisive, key=lambda report: OUTCOMES.index(outcome(report)))
        word, why = outcome(worst), message(worst)
        result.status = allure_files.STATUS[word]
        result.statusDetails = None
        if word != "passed":
            why = why if word == "failed" or why.startswith(word) else f"{word}: {why}"
            trace = "" if word == "skipped" else worst.longreprtext
            known = True if word == "known defect" else None
            result.statusDetails = StatusDetails(known=known, message=why, trace=trace)

    def _place(self, result: TestResult, host: str) -> None:
        """Below the host: where several are judged, their results do not mix, in no tree of the report."""
        suite = [label.value for label in result.labels if label.name in ("parentSuite", "suite")]
        replaced = (LabelType.HOST, LabelType.PARENT_SUITE, LabelType.SUITE, LabelType.SUB_SUITE)
        result.labels = [label for label in result.labels if label.name not in replaced]
        result.labels += [Label(LabelType.HOST, host), Label(LabelType.PARENT_SUITE, host)]
        result.labels.append(Label(LabelType.SUITE, ".".join(suite)))
        result.titlePath = [host, *result.titlePath]

    def _parameters(self, result: TestResult, host: str, properties: dict[str, str]) -> None:
        """Readable ones. What is excluded is shown, and does not tell one history from another."""
        case = self._item.stash.get(CASE, {}) if self._item else {}
        callspec = getattr(self._item, "callspec", None)
        others = set(callspec.params if callspec else ()) - {*_NAMES, "es_path", "sev_host"}
        words = callspec.id.removesuffix(host).removesuffix("-") if callspec and others else ""
        told = {"host": host, **{_NAMES[name]: word for name, word in case.items()}}
        told |= {"case": words} if words else {}
        identity = [result.fullName or result.name, *sorted(f"{name}={word}" for name, word in told.items())]
        result.historyId = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        result.parameters = [Parameter(name=name, value=value) for name, value in told.items()]
        seen = {"requirement": properties.get("requirement")}
        seen |= {_NAMES[name]: properties.get(name) for name in _NAMES if name not in case}
        result.parameters += [
            Parameter(name=name, value=value, excluded=True) for name, value in seen.items() if value
        ]

    def _require(self, result: TestResult, identifier: str, level: str) -> None:
        path = catalogue.find(self._item.path.parent) if self._item else None
        if path is None:
            return
        requirement = catalogue.load(path)[identifier]
        own = (result.description or "").strip()
        labels = {
            LabelType.EPIC: requirement.family,
            LabelType.FEATURE: f"{identifier} {requirement.sentence}",
            LabelType.STORY: own.partition("\n")[0] or result.name,
            LabelType.SEVERITY: _SEVERITY[level].value,
            LabelType.TAG: level,
            "requirement": identifier,
            "level": level,
            "source": requirement.source,
        }
        result.labels = [*(Label(name, value) for name, value in labels.items()), *result.labels]
        result.description = (
            f"{own}\n\n{identifier} ({level}): {requirement.sentence}\n\nSource: {requirement.source}"
        )
        result.links += [Link(LinkType.LINK, *link) for link in allure_files.links(requirement.source)]
        reason = result.statusDetails.message if result.statusDetails and result.statusDetails.known else ""
        result.links += [Link(LinkType.ISSUE, *link) for link in allure_files.links(reason)]


def _name(spec: GuestSpec) -> str:
    words = [f"{spec.vcpus}vcpu", policy_name(spec.policy), *filter(None, [spec.init_path]), *spec.faults]
    return "-".join(words)


def _step_of(launch: Launch, name: str) -> TestStepResult:
    """The step of a launch that has just ended, its phases below it."""
    told = phases(launch)
    ended_ns = told[-1].end_ns or max((event.time_ns for event in launch.timeline.recorded), default=0)
    # The recording has the host's monotonic clock. It was collected as soon as the VMM had ended.
    begin_ns = next((phase.start_ns for phase in told if phase.start_ns is not None), ended_ns)
    offset_ns = time.time_ns() - ended_ns
    step = TestStepResult(name=f"launch of {name}: {launch.exit}", status="passed")
    step.start, step.stop = ((at + offset_ns) // 1_000_000 for at in (begin_ns, ended_ns))
    step.steps += [_step(phase, begin_ns, ended_ns, offset_ns) for phase in told]
    return step


def _step(phase: Phase, begin_ns: int, ended_ns: int, offset_ns: int) -> TestStepResult:
    """A phase that is not done is shown as skipped: what is red in a report is a verdict."""
    start = phase.start_ns if phase.start_ns is not None else ended_ns
    stop = phase.end_ns if phase.end_ns is not None else start
    at = f" at +{(start - begin_ns) / 1e6:.1f} ms" if phase.start_ns is not None else ""
    return TestStepResult(
        name=plain(str(phase) + at),
        status="passed" if phase.done else "skipped",
        start=(start + offset_ns) // 1_000_000,
        stop=(stop + offset_ns) // 1_000_000,
    )


def _known(hosts: Source) -> dict[str, str]:
    """What was found out about the hosts that this process was connected to."""
    out: dict[str, str] = {}
    for target in hosts.connected():
        if "facts" not in vars(target):
            continue
        facts = target.facts
        told = {
            "kind": f"model {target.entry.model}" if target.entry.model else "hardware",
            "CPU": facts.cpu,
            "microcode": facts.microcode,
            "kernel": facts.kernel,
            "VMM": facts.vmm.line,
            "firmware": facts.firmware.path,
            "firmware sha256": facts.firmware.sha256,
            "VMM sha256": facts.vmm.sha256,
        }
        if facts.platform is not None:
            api = facts.platform
            told["SEV firmware"] = f"API {api.api_major}.{api.api_minor}, build {api.build}"
        prefix = f"{target.name}." if len(hosts.entries) > 1 else ""
        out.update({prefix + name: value for name, value in told.items() if value})
    return out
