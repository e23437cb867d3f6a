# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that one launch left behind."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import cached_property

from pytest_seves.errors import EvidenceError, Undecided
from pytest_seves.spec.sev import Policy
from pytest_seves.text import plain

from .gdb import GdbTranscript
from .linux_report import LinuxReport, read_linux_reports
from .probe_report import ProbeReport, read_report, read_reports
from .qmp import QmpTranscript
from .timeline import ES_INIT_COMMANDS, INIT_COMMANDS, Stage, Timeline

#: Characters of a VMM's last words that an account of its end quotes.
_SAID = 400


@dataclass(frozen=True)
class Exit:
    """How the VMM ended: exactly one of the two is not None."""

    status: int | None
    signal: int | None
    #: True when we killed it because it went past its deadline.
    killed_at_deadline: bool = False

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.status}"
        why = ", killed by us at its deadline" if self.killed_at_deadline else ""
        return f"signal {self.signal} {signal.Signals(self.signal).name}{why}"


@dataclass(frozen=True)
class Output:
    """A bounded capture: the beginning and the end, and how many bytes in between were let go."""

    head: bytes
    tail: bytes
    dropped: int

    @property
    def text(self) -> str:
        """Decoded as UTF-8; what is not becomes a backslash escape."""
        gap = f"\n[... {self.dropped} bytes not kept ...]\n".encode() if self.dropped else b""
        return (self.head + gap + self.tail).decode(errors="backslashreplace")

    @property
    def all(self) -> bytes:
        """All of it.

        :raise Undecided: some of it was not kept.
        """
        if self.dropped:
            raise Undecided(
                f"{self.dropped} of {self.size} bytes were not kept: a flood; it begins {self.head[:200]!r}"
            )
        return self.head + self.tail

    @property
    def size(self) -> int:
        """Bytes that were written, kept or not."""
        return len(self.head) + len(self.tail) + self.dropped


@dataclass(frozen=True)
class Usage:
    """What guests hold of a host at one time.

    :param sev, sev_es: ASIDs in use of either range, by the misc cgroup.
    :param guests: the firmware's guest count (SEV API, PLATFORM_STATUS).
    """

    sev: int
    sev_es: int
    guests: int


@dataclass(frozen=True)
class Launch:
    """Evidence of one launch.

    A launch whose guest is only observed is shared by every test that asks for the same one, so nothing
    here can be changed. `phase` says where the observation of a VMM that did not do what was expected
    ended, for example ``waiting for the QMP greeting``; it is empty after a complete observation.
    """

    host: str
    argv: tuple[str, ...]
    timeline: Timeline
    #: The recording that the timeline was decoded from: JSON lines, zlib-compressed.
    recording_z: bytes = field(repr=False)
    qmp: QmpTranscript
    console: Output
    stdout: Output
    stderr: Output
    exit: Exit
    phase: str = ""
    gdb: GdbTranscript = field(default_factory=GdbTranscript)
    #: What the VMM dumped of the guest's memory, one ELF core each; empty where it refused to.
    dumps: tuple[bytes, ...] = field(default=(), repr=False)
    #: Before it and after it, where no other guest was launched on the host meanwhile.
    usage: tuple[Usage, Usage] | None = None
    #: The directory that it is kept in; empty where none is.
    folder: str = ""

    def reached(self, stage: Stage) -> Launch:
        """This launch, if it came as far as `stage`.

        :raise Undecided: it ended before; the message says where and how.
        """
        if self.timeline.stage >= stage:
            return self
        raise Undecided(
            f"{self.host}: the launch ended before {stage.name}: {self.account()}", argv=self.argv
        )

    def attempted(self, stage: Stage) -> Launch:
        """This launch, if the VMM at least tried to bring it to `stage`, whatever the kernel answered.

        :raise Undecided: it ended before; the message says where and how.
        """
        if self.timeline.attempted >= stage:
            return self
        raise Undecided(
            f"{self.host}: the VMM never attempted {stage.name}: {self.account()}", argv=self.argv
        )

    def refused(self) -> Launch:
        """This launch, if the VMM gave it up before any vCPU ran.

        :raise Undecided: the guest ran; the requirement that it be refused judges that.
        """
        if not self.timeline.runs:
            return self
        raise Undecided(f"{self.host}: the launch was not refused: {self.account()}", argv=self.argv)

    def initialised_for(self, policy: int = Policy.ES) -> Launch:
        """This launch, if its VM was initialised for SEV, and for SEV-ES where the policy wants that.

        :raise Undecided: it was not, so a rule about such a VM says nothing; INIT-1 judges that.
        """
        wanted = ES_INIT_COMMANDS if policy & Policy.ES else INIT_COMMANDS
        if self.timeline.init_path in wanted:
            return self
        raise Undecided(f"{self.host}: the VM was not initialised as its policy asks: {self.account()}")

    @cached_property
    def report(self) -> ProbeReport:
        """What the probe guest said on the console (guest/payload).

        :raise Undecided: nothing, or no complete and readable report.
        """
        return read_report(self.console.all)

    @cached_property
    def reports(self) -> tuple[ProbeReport, ...]:
        """Every report of the probe guest; the last may have no end yet.

        :raise Undecided: what is on the console cannot be read as such, or there is none.
        """
        reports = read_reports(self.console.all)
        if not reports:
            raise Undecided(f"{self.host}: the probe guest said nothing: {self.account()}")
        return reports

    @cached_property
    def boots(self) -> tuple[LinuxReport, ...]:
        """What the init of a Linux guest said (guest/linux), a report for each boot that came so far.

        :raise Undecided: a report cannot be read.
        """
        return read_linux_reports(self.console.all)

    @property
    def held(self) -> tuple[Usage, Usage]:
        """What guests held of the host before this launch and after it.

        :raise EvidenceError: others may have launched guests meanwhile, so nothing was counted.
        """
        if self.usage is None:
            raise EvidenceError(f"{self.host}: what this launch held was not counted: it was not alone")
        return self.usage

    def account(self) -> str:
        """How the launch ended, in one or two lines for a person."""
        issued = [event for event in self.timeline.events if event.sev is not None]
        last = f"last SEV command {issued[-1]}" if issued else "no SEV command was issued"
        said = self.stderr.text.strip().splitlines()
        text = f"{last}; {self.exit}"
        if self.phase:
            text += f" while {self.phase}"
        return f"{text}; stderr: {plain(said[-1], _SAID)}" if said else text
