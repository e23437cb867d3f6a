# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch as the kernel saw it: recorded ioctls in order, and the questions that verdicts ask of them."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_seves.errors import EvidenceError, Undecided
from pytest_seves.spec import kvm, vmsa
from pytest_seves.spec.sev import SevCmd

from .events import Event, decode_event

FORMAT = "seves-timeline/1"
INIT_COMMANDS = (SevCmd.KVM_SEV_INIT, SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT2)
ES_INIT_COMMANDS = (SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT2)


class Stage(enum.IntEnum):
    """How far a launch came."""

    NOTHING = 0
    VM_CREATED = 1
    INITIALISED = 2
    STARTED = 3
    MEASURED = 4
    FINISHED = 5
    RUNNING = 6


_STAGE_OF = {
    SevCmd.KVM_SEV_INIT: Stage.INITIALISED,
    SevCmd.KVM_SEV_ES_INIT: Stage.INITIALISED,
    SevCmd.KVM_SEV_INIT2: Stage.INITIALISED,
    SevCmd.KVM_SEV_LAUNCH_START: Stage.STARTED,
    SevCmd.KVM_SEV_LAUNCH_MEASURE: Stage.MEASURED,
    SevCmd.KVM_SEV_LAUNCH_FINISH: Stage.FINISHED,
}


@dataclass(frozen=True)
class Timeline:
    """The events of one VMM process tree.

    :param mode: how it was recorded, ``trace`` or ``stop``.
    :param recorded: every line, including calls that a sabotage rule dropped.
    :param end: the recorder's closing line.
    """

    mode: str
    recorded: tuple[Event, ...]
    end: dict[str, Any]

    @classmethod
    def from_jsonl(cls, raw: bytes) -> Timeline:
        """Decode what the recorder wrote.

        :param raw: UTF-8 JSON lines: a header with the format, events in order of entry, an end line.
        :raise EvidenceError: not that format, a damaged line (named by number), or no end line: the
            recorder was killed, and nothing may be concluded from what is missing.
        """
        lines = raw.splitlines()
        records = [_parse(line, number) for number, line in enumerate(lines, start=1)]
        if not records or records[0].get("format") != FORMAT:
            got = records[0].get("format") if records else "an empty recording"
            raise EvidenceError(f"timeline: wanted format {FORMAT!r} in line 1, got {got!r}")
        if not records[-1].get("end"):
            raise EvidenceError(
                f"timeline: no end line after {len(records)} lines: the recorder died, or its output was cut"
            )
        events = (decode_event(record, index) for index, record in enumerate(records[1:-1]))
        ordered = sorted(events, key=lambda event: (event.time_ns, event.index))
        return cls(str(records[0].get("mode")), tuple(ordered), records[-1])

    @cached_property
    def vm(self) -> int | None:
        """Descriptor of the guest's VM: the one that was initialised for SEV, else the last one created."""
        initialised = [event.vm for event in self.recorded if event.sev and event.sev.id in INIT_COMMANDS]
        created = [
            event.result for event in self.recorded if event.request == kvm.KVM_CREATE_VM and event.succeeded
        ]
        return (initialised or created or [None])[-1]

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """What the product did to the guest's VM, in order, and what it did to no VM in particular."""
        return tuple(event for event in self.recorded if event.happened and event.vm in (None, self.vm))

    def requests(self, *numbers: int) -> tuple[Event, ...]:
        """Events of these ioctl requests."""
        return tuple(event for event in self.events if event.request in numbers)

    def commands(self, *identifiers: SevCmd) -> tuple[Event, ...]:
        """Events of these SEV sub-commands, failed ones included."""
        return tuple(event for event in self.events if event.sev is not None and event.sev.id in identifiers)

    def succeeded(self, *identifiers: SevCmd) -> tuple[Event, ...]:
        """Events of these SEV sub-commands that the kernel reported as done."""
        return tuple(event for event in self.commands(*identifiers) if event.succeeded)

    def last(self, identifier: SevCmd) -> Event:
        """The last time this SEV sub-command was issued, whatever came of it.

        :raise Undecided: it never was.
        """
        issued = self.commands(identifier)
        if not issued:
            raise Undecided(f"no {identifier.name} was issued, so there is nothing to judge about it")
        return issued[-1]

    @property
    def stage(self) -> Stage:
        """How far the launch came."""
        if self.runs:
            return Stage.RUNNING
        return self._furthest(self.succeeded(*_STAGE_OF))

    @property
    def attempted(self) -> Stage:
        """How far the VMM tried to bring the launch, whatever the kernel answered."""
        return max(self.stage, self._furthest(self.commands(*_STAGE_OF)))

    def _furthest(self, commands: Iterable[Event]) -> Stage:
        reached = [_STAGE_OF[SevCmd(event.sev.id)] for event in commands if event.sev is not None]
        return max([Stage.VM_CREATED if self.vm is not None else Stage.NOTHING, *reached])

    @property
    def vm_type(self) -> int | None:
        """Type given to KVM_CREATE_VM for the guest's VM, None when none was created."""
        made = [
            e for e in self.recorded if e.request == kvm.KVM_CREATE_VM and e.succeeded and e.result == self.vm
        ]
        return made[-1].argument if made else None

    @property
    def init(self) -> tuple[Event, ...]:
        """Every attempt to initialise the VM for SEV, whichever way."""
        return self.commands(*INIT_COMMANDS)

    @property
    def init_path(self) -> SevCmd | None:
        """The command that initialised the VM, None when none succeeded."""
        done = self.succeeded(*INIT_COMMANDS)
        return SevCmd(done[0].sev.id) if done and done[0].sev else None

    @property
    def vcpu_creations(self) -> tuple[Event, ...]:
        """Successful KVM_CREATE_VCPU calls."""
        return tuple(event for event in self.requests(kvm.KVM_CREATE_VCPU) if event.succeeded)

    @property
    def created_vcpus(self) -> list[int]:
        """Indexes of the vCPUs that the VMM created, sorted."""
        return sorted(event.argument for event in self.vcpu_creations)

    @property
    def vmsa_updates(self) -> tuple[Event, ...]:
        """KVM_SEV_LAUNCH_UPDATE_VMSA calls that succeeded."""
        return self.succeeded(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)

    @property
    def vmsa_update(self) -> Event:
        """The first KVM_SEV_LAUNCH_UPDATE_VMSA that succeeded.

        :raise Undecided: none did, so there is nothing to say about what it measured.
        """
        if not self.vmsa_updates:
            raise Undecided("no LAUNCH_UPDATE_VMSA succeeded; VMSA-1 judges that")
        return self.vmsa_updates[0]

    @property
    def measured_vcpus(self) -> list[int]:
        """Indexes of the vCPUs that LAUNCH_UPDATE_VMSA covered, sorted, once per time covered.

        One ioctl covers every vCPU that exists then (KVM loops over them).
        """
        covered: list[int] = []
        for update in self.vmsa_updates:
            covered += [made.argument for made in before(self.vcpu_creations, update)]
        return sorted(covered)

    @property
    def measures(self) -> tuple[Event, ...]:
        """KVM_SEV_LAUNCH_MEASURE calls; the first is usually the length probe, which fails."""
        return self.commands(SevCmd.KVM_SEV_LAUNCH_MEASURE)

    @property
    def runs(self) -> tuple[Event, ...]:
        """First KVM_RUN of each vCPU."""
        return self.requests(kvm.KVM_RUN)

    def cpu_signature(self, vcpu: int) -> int:
        """CPUID 1 EAX (family, model, stepping) that the VMM gave this vCPU.

        :raise EvidenceError: it set no CPUID, or one without that leaf.
        """
        for event in reversed(self.requests(kvm.KVM_SET_CPUID2)):
            if event.vcpu == vcpu and not event.failed and event.input is not None:
                for leaf in kvm.cpuid_entries(event.input):
                    if leaf["function"] == 1:
                        return int(leaf["eax"])
        raise EvidenceError(f"timeline: vCPU {vcpu} was given no CPUID leaf 1")

    def capability_checks(self, capability: int) -> tuple[Event, ...]:
        """KVM_CHECK_EXTENSION of one capability, on whichever descriptor."""
        asked = self.requests(kvm.KVM_CHECK_EXTENSION)
        return tuple(event for event in asked if event.argument == capability)

    @property
    def memory_address_spaces(self) -> set[int]:
        """Address spaces in which the VMM registered memory: 0, and 1 for system management mode."""
        slots = [
            kvm.USERSPACE_MEMORY_REGION.decode(event.input[: kvm.USERSPACE_MEMORY_REGION.size])["slot"]
            for event in self.requests(kvm.KVM_SET_USER_MEMORY_REGION, kvm.KVM_SET_USER_MEMORY_REGION2)
            if event.input is not None
        ]
        return {slot >> 16 for slot in slots}

    def register_writes(self, vcpu: int | None = None) -> tuple[Event, ...]:
        """Calls that set registers which a VMSA holds, of one vCPU or of all.

        An MSR that no VMSA holds is none of them: IA32_APIC_BASE lives in KVM's LAPIC, and the reset after
        LAUNCH_UPDATE_VMSA may write it (QEMU 9.1 and later does).
        """
        writes = self.requests(*kvm.REGISTER_WRITES)
        return tuple(e for e in writes if vcpu in (None, e.vcpu) and _sets_a_vmsa_field(e))


def names(events: Iterable[Event]) -> list[str]:
    """Names of events, for assertions that read well when they fail."""
    return [event.name for event in events]


def before(events: Sequence[Event], mark: Event) -> list[Event]:
    """Those of `events` that entered the kernel before `mark` did."""
    return [event for event in events if event.time_ns < mark.time_ns]


def after(events: Sequence[Event], mark: Event) -> list[Event]:
    """Those of `events` that entered the kernel after `mark` did."""
    return [event for event in events if event.time_ns > mark.time_ns]


def _sets_a_vmsa_field(write: Event) -> bool:
    if write.request != kvm.KVM_SET_MSRS or write.input is None:
        return True
    return any(entry["index"] in vmsa.MSR_FIELDS for entry in kvm.msr_entries(write.input))


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise EvidenceError(f"timeline line {number}: not JSON: {error}: {line[:80]!r}") from None
    if not isinstance(record, dict):
        raise EvidenceError(f"timeline line {number}: wanted an object, got {line[:80]!r}")
    return record
