# SPDX-License-Identifier: GPL-2.0-or-later
"""The other side of :mod:`pytest_seves.guest.seam`: a bundle answers in the place of a host and its VMM."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import HostError, NotRecorded
from pytest_seves.evidence.bundle import Bundle, Evidence, Result
from pytest_seves.host.facts_file import entry_of, facts_of
from pytest_seves.host.readiness import judge, ready

from .answers import Answers
from .calls import Step, Steps, flat
from .init_path import INIT2, InitPath
from .recorded import PUT, program_record, spec_key, spec_record, stored_name
from .seam import require_init2
from .spec import GuestSpec

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.host.facts import HostFacts
    from pytest_seves.host.inventory import LabHost

Tell = Callable[[str, None], None]


class RecordedTarget:
    """A host as it was."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name = name
        self._bundle = bundle

    @cached_property
    def _record(self) -> dict[str, Any]:
        record = self._bundle.facts(self.name)
        if record is None:
            raise NotRecorded(f"not in the bundle: facts of {self.name}, which was never reached")
        return record

    @cached_property
    def entry(self) -> LabHost:
        """Its lab file, without the way to it."""
        return entry_of(self._record)

    @cached_property
    def facts(self) -> HostFacts:
        """What it was."""
        return facts_of(self._record)

    def require_ready(self) -> None:
        """Refuse to judge a VMM on a host that cannot run SEV-ES guests."""
        failing = [row.name for row in self._rows if row.state == "fail"]
        if not ready(self._rows):
            raise HostError(f"was not ready for SEV-ES: {', '.join(failing)}", host=self.name)

    @cached_property
    def _rows(self) -> list[Any]:
        return judge(self.facts, self.entry)


class RecordedLaunches:
    """Launches of one host in a bundle, by what was asked for."""

    def __init__(self, bundle: Bundle, host: str) -> None:
        self.bundle = bundle
        self.served = 0
        self.used: set[str] = set()
        self._shared: dict[str, Evidence] = {}
        for result in bundle.results:
            for evidence in result.evidence if result.host == host else ():
                if evidence.kind == "launch" and evidence.request is not None:
                    self._shared.setdefault(spec_key(evidence.request), evidence)

    def find(self, key: str, own: Sequence[Evidence]) -> Evidence | None:
        """The launch that the test itself judged, else one of the same guest that another test did."""
        mine = (e for e in own if e.kind == "launch" and e.request and spec_key(e.request) == key)
        return next(mine, None) or self._shared.get(key)

    def take(self, evidence: Evidence) -> Launch:
        """The evidence again."""
        self.served += 1
        self.used.add(evidence.path)
        return self.bundle.launch(self.bundle.manifest(evidence))


class RecordedLauncher:
    """`launch_guest` of one test.

    :param result: what the bundle has of the test; None for a test that it does not know.
    :param tell: told where evidence is that the test gets.
    :param given: told of each guest that the test gets.
    """

    def __init__(
        self,
        target: RecordedTarget,
        launches: RecordedLaunches,
        result: Result | None,
        tell: Tell,
        given: Callable[[GuestSpec, Launch], None] = lambda spec, launch: None,
    ) -> None:
        self._target = target
        self._launches = launches
        self._result = result
        self._own = result.evidence if result else ()
        self._tell = tell
        self._given = given
        self._alone = (e for e in self._own if e.kind == "alone")
        self._made = [launches.bundle.record(e) for e in self._own if e.kind == "made"]

    def __call__(self, **options: Any) -> Launch:
        """Evidence of the launch with these options."""
        spec = GuestSpec.of(**options)
        self._require(spec)
        record = spec_record(spec)
        evidence = self._launches.find(spec_key(record), self._own)
        if evidence is None:
            raise self._missing(f"a launch of {_asked(record)}")
        return self._take(evidence, spec)

    @contextmanager
    def alone(self) -> Iterator[RecordedLauncher.Alone]:
        """The launches that the test had for itself, in order."""
        self._target.require_ready()
        yield RecordedLauncher.Alone(self)

    def put(self, name: str, content: bytes) -> str:
        """What a file of this content is called in the bundle."""
        return PUT + stored_name(name, content)

    def made(self, name: str, make: Callable[[], str]) -> str:
        """What the test made then."""
        for record in self._made:
            if record.get("name") == name:
                self._made.remove(record)
                return str(record.get("content"))
        raise self._missing(f"what the test made as {name!r}")

    class Alone:
        """Launches that nobody shared."""

        def __init__(self, launcher: RecordedLauncher) -> None:
            self._launcher = launcher

        def __call__(self, **options: Any) -> Launch:
            """The next one, which must be of this guest."""
            return self._launcher._next_alone(GuestSpec.of(**options))

        def leave_free(self, es_asids: int | None) -> int:
            """Nothing is held: the launches that follow were made so."""
            return 0

    def _next_alone(self, spec: GuestSpec) -> Launch:
        self._require(spec)
        record = spec_record(spec)
        evidence = next(self._alone, None)
        if evidence is None or spec_key(evidence.request or {}) != spec_key(record):
            raise self._missing(f"a launch of {_asked(record)} that was alone")
        return self._take(evidence, spec)

    def _take(self, evidence: Evidence, spec: GuestSpec) -> Launch:
        launch = self._launches.take(evidence)
        self._tell(launch.folder, None)
        self._given(spec, launch)
        return launch

    def _require(self, spec: GuestSpec) -> None:
        self._target.require_ready()
        if spec.init_path == "INIT2":
            require_init2(self._target.name, self._target.facts)

    def _missing(self, what: str) -> NotRecorded:
        return _missing(what, self._result)


class RecordedKvm:
    """`kvm` of one test: the n-th program is answered as the n-th was."""

    def __init__(self, target: RecordedTarget, bundle: Bundle, result: Result | None) -> None:
        self._target = target
        self._result = result
        own = result.evidence if result else ()
        self._programs = [bundle.record(e) for e in own if e.kind == "calls"]

    def __call__(self, *steps: Steps, timeout_s: float = 0.0) -> Answers:
        """The recorded answers, if the program is the recorded one."""
        program: tuple[Step, ...] = tuple(flat(steps))
        asked = json.loads(json.dumps(program_record(program)))
        recorded: Mapping[str, Any] = self._programs.pop(0) if self._programs else {}
        if recorded.get("program") != asked:
            raise _missing(f"a program of {len(program)} direct calls", self._result)
        return Answers(program, recorded["answers"])

    def require(self, path: InitPath) -> None:
        """Skip where the kernel lacked an init path."""
        if path is INIT2:
            require_init2(self._target.name, self._target.facts)


def _missing(what: str, result: Result | None) -> NotRecorded:
    text = f"not in the bundle: {what}"
    return NotRecorded(f"{text}; it was skipped then: {result.why}" if _skipped(result) and result else text)


def _skipped(result: Result | None) -> bool:
    return result is not None and result.outcome == "skipped"


def _asked(record: Mapping[str, Any]) -> str:
    """What differs from the default guest, for a person."""
    default = spec_record(GuestSpec())
    differs = {name: value for name, value in record.items() if value != default[name]}
    return f"a guest with {json.dumps(differs)[:300]}" if differs else "the default guest"
