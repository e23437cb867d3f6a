# SPDX-License-Identifier: GPL-2.0-or-later
"""What the probe guest said on its console, as values. Pure: bytes in, report out.

A console that holds no report, half of one, or one that contradicts itself says something about the guest or
the VMM, but not what: that is :class:`~pytest_seves.errors.Undecided`, and the message shows the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pytest_seves.errors import Undecided

from .probe_line import VERSION, Line, LineError, parse_line

#: More than 4096 vCPUs say in any scenario that ends; what is longer is a flood.
MAX_BYTES = 4 << 20
_GUEST = "the probe guest"
_SHOWN = 400  # bytes of the console in a message, around the place


@dataclass(frozen=True)
class Ghcb:
    """GHCB protocol versions: what the hypervisor offers, and the one in use; all 0 without SEV-ES."""

    offered: tuple[int, int]
    used: int


@dataclass(frozen=True)
class ProbeCpu:
    """A vCPU that got as far as long mode.

    :ivar apic_id: its id before it had a #VC handler (GHCB MSR protocol under SEV-ES).
    :ivar cpuid_apic_id: its id by the CPUID instruction.
    :ivar arrived: it reported; False: it got a stack, and was not heard of again.
    :ivar entry: ``reset-vector``, ``reset-block`` or ``sipi-vector``: where it started.
    :ivar entry_address: address of the code there.
    :ivar entry_cs: selector of CS there.
    :ivar vc: #VC exceptions until it reported, by exit code.
    """

    index: int
    apic_id: int
    cpuid_apic_id: int
    arrived: bool
    entry: str
    entry_address: int
    entry_cs: int
    sev_status: int
    ghcb: Ghcb
    vc: Mapping[int, int]


@dataclass(frozen=True)
class Canaries:
    """Which canaries still had their value.

    KVM without debug swapping does not keep DR0 to DR3 of a SEV-ES guest: `dr` alone is no verdict there.
    """

    gpr: bool
    xmm: bool
    cr3: bool
    dr: bool
    memory: bool


@dataclass(frozen=True)
class Beat:
    """The BSP compared its canaries. `holding`: vCPUs that have placed theirs, itself among them."""

    number: int
    holding: int
    canaries: Canaries


@dataclass(frozen=True)
class Held:
    """What a vCPU found out about its canaries, over all of its `checks`."""

    cpu: int
    checks: int
    canaries: Canaries


@dataclass(frozen=True)
class Parked:
    """An AP in ``park``: wakes by a SIPI, and returns from reset hold without one."""

    cpu: int
    wakes: int
    spurious: int


@dataclass(frozen=True)
class Storm:
    """A vCPU in ``storm``: `bad` answers to CPUID differed from the first; `vc` are all #VCs it ever took."""

    cpu: int
    rounds: int
    bad: int
    vc: Mapping[int, int]


@dataclass(frozen=True)
class Fault:
    """An exception that nothing was to cause (`what` has vector, error, rip, cr2), or a refused VMGEXIT."""

    cpu: int
    what: Mapping[str, int]


@dataclass(frozen=True)
class ProbeReport:
    """One report. `result` is None where the end line is missing.

    :ivar expected: vCPUs that should have come up; `started` is how many did, None without an end line.
    :ivar again: this start came after a reset that the guest brought about.
    :ivar result: ``ok``; ``timeout``: an AP, or a wait, took too long; ``unsupported``: the scenario needs
        SEV-ES; ``fault``: see `faults`.
    :ivar retries: SIPIs that were sent again. `forced`: times that the console's lock was taken by force.
    :ivar returned: the scenario was to end the guest, and did not.
    :ivar late: lines of vCPUs after the end line.
    """

    scenario: str
    expected: int
    tag: int
    again: bool
    sev_status: int
    cbit: int
    ghcb: Ghcb
    x2apic: bool
    cpus: tuple[ProbeCpu, ...] = ()
    beats: tuple[Beat, ...] = ()
    held: tuple[Held, ...] = ()
    parked: tuple[Parked, ...] = ()
    storms: tuple[Storm, ...] = ()
    faults: tuple[Fault, ...] = ()
    result: str | None = None
    started: int | None = None
    retries: int = 0
    forced: int = 0
    returned: bool = False
    late: int = 0

    @property
    def complete(self) -> bool:
        """The end line is there."""
        return self.result is not None


def read_report(console: bytes) -> ProbeReport:
    """The one complete report on a console.

    :raise Undecided: there is none, more than one, or only a part of it; or what is there cannot be read.
    """
    reports = read_reports(console)
    if len(reports) != 1:
        refuse(console, 0, f"wanted one report, got {len(reports)}")
    if not reports[0].complete:
        refuse(console, len(console), f"wanted an end line of scenario {reports[0].scenario}, got none")
    return reports[0]


def read_reports(console: bytes) -> tuple[ProbeReport, ...]:
    """All reports on a console, in order: one for each start of the guest. The last may have no end yet.

    A last line without a line feed is one that is still being written, and is left out.

    :raise Undecided: something on the console is no line of a report, is missing, or contradicts the rest.
    """
    return tuple(_report(draft.lines) for draft in read_drafts(console, _lines(console), _GUEST))


def _lines(console: bytes) -> Iterator[tuple[int, Line]]:
    offset = 0
    while (end := console.find(b"\n", offset)) >= 0:
        try:
            line = parse_line(console[offset:end])
        except LineError as error:
            refuse(console, offset, str(error))
        yield offset, line
        offset = end + 1
    rest = console[offset:]
    if not (rest.startswith(f"{VERSION} ".encode()) or f"{VERSION} ".encode().startswith(rest)):
        refuse(console, offset, f"wanted '{VERSION} n=... crc=...'")


#: Lines of these kinds come in rising order of the number that follows the kind.
_RISING = ("cpu", "beat", "canaries", "parked", "storm", "log", "cycled")


class Draft:
    """A report as far as it was read."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._last: dict[str, int] = {}
        self._ended = False

    def add(self, line: Line) -> str | None:
        """Take the next line; what is the matter with it, or None."""
        wanted, values = len(self.lines), line.values
        if line.number != wanted:
            return f"wanted line n={wanted}, got n={line.number}: lines are lost or came twice"
        if line.kind in _RISING:
            if values[line.kind] <= self._last.get(line.kind, -1):
                return f"wanted {line.kind} in rising order, got {values[line.kind]} again or late"
            self._last[line.kind] = values[line.kind]
        if line.kind == "end":
            scenario = self.lines[0].values["scenario"]
            if self._ended:
                return "a second end line"
            if values["lines"] != wanted:
                return f"wanted lines={wanted} in the end line, got {values['lines']}"
            if values["scenario"] != scenario:
                return f"begun as scenario {scenario}, ended as {values['scenario']}"
            self._ended = True
        self.lines.append(line)
        return None


def read_drafts(console: bytes, lines: Iterator[tuple[int, Line]], of: str) -> list[Draft]:
    """Lines of a console, with their offsets, put together to reports; each begins with its begin line.

    :param of: what guest says them, for the error.
    :raise Undecided: there are too many, or one does not follow from those before it.
    """
    if len(console) > MAX_BYTES:
        refuse(console, 0, f"wanted at most {MAX_BYTES} bytes, got {len(console)}: a flood", of)
    drafts: list[Draft] = []
    for offset, line in lines:
        if line.kind == "begin":
            drafts.append(Draft())
        elif not drafts:
            refuse(console, offset, f"wanted a begin line first, got {line.kind}", of)
        problem = drafts[-1].add(line)
        if problem:
            refuse(console, offset, problem, of)
    return drafts


def _report(lines: list[Line]) -> ProbeReport:
    begin = dict(lines[0].values)
    end: Mapping[str, Any] = next((line.values for line in lines if line.kind == "end"), {})
    kinds = [line.kind for line in lines]
    after = kinds[kinds.index("end") + 1 :] if end else []
    return ProbeReport(
        scenario=begin["scenario"],
        expected=begin["cpus"],
        tag=begin["tag"],
        again=begin["again"],
        sev_status=begin["sev_status"],
        cbit=begin["cbit"],
        ghcb=Ghcb(begin["ghcb"], begin["version"]),
        x2apic=begin["x2apic"],
        cpus=tuple(_cpu(values) for values in _of(lines, "cpu")),
        beats=tuple(Beat(v["beat"], v["holding"], _canaries(v)) for v in _of(lines, "beat")),
        held=tuple(Held(v["canaries"], v["checks"], _canaries(v)) for v in _of(lines, "canaries")),
        parked=tuple(Parked(v["parked"], v["wakes"], v["spurious"]) for v in _of(lines, "parked")),
        storms=tuple(Storm(v["storm"], v["rounds"], v["bad"], v["vc"]) for v in _of(lines, "storm")),
        faults=tuple(Fault(v["cpu"], {k: v[k] for k in v if k != "cpu"}) for v in _of(lines, "fault")),
        result=end.get("result"),
        started=end.get("cpus"),
        retries=end.get("retries", 0),
        forced=end.get("forced", 0),
        returned="returned" in kinds,
        late=len([kind for kind in after if kind != "returned"]),
    )


def _of(lines: list[Line], kind: str) -> Iterator[Mapping[str, Any]]:
    return (line.values for line in lines if line.kind == kind)


def _cpu(values: Mapping[str, Any]) -> ProbeCpu:
    return ProbeCpu(
        index=values["cpu"],
        apic_id=values["apic"],
        cpuid_apic_id=values["cpuid"],
        arrived=values["arrived"],
        entry=values["entry"],
        entry_address=values["at"],
        entry_cs=values["cs"],
        sev_status=values["sev_status"],
        ghcb=Ghcb(values["ghcb"], values["version"]),
        vc=values["vc"],
    )


def _canaries(values: Mapping[str, Any]) -> Canaries:
    return Canaries(**{name: values[name] for name in ("gpr", "xmm", "cr3", "dr", "memory")})


def refuse(console: bytes, offset: int, problem: str, of: str = _GUEST) -> NoReturn:
    """Say where a console cannot be read, and show it there.

    :raise Undecided: always.
    """
    start = max(0, min(offset, len(console)) - _SHOWN // 4)
    raw = console[start : start + _SHOWN]
    text = raw.decode("ascii", errors="backslashreplace")
    cut = f" ({len(raw)} of {len(console)} bytes, from {start})" if len(raw) < len(console) else ""
    raise Undecided(
        f"console of {of} at byte {offset}: {problem}; the console{cut} says: {text!r}",
        offset=offset,
        problem=problem,
        raw=raw,
    )
