# SPDX-License-Identifier: GPL-2.0-or-later
"""A launch as a person tells it: what came after what, when, and where it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_seves.spec import kvm
from pytest_seves.spec.sev import SevCmd

from .events import Event
from .launch import Launch
from .timeline import INIT_COMMANDS


@dataclass(frozen=True)
class Phase:
    """A part of a launch.

    :param start_ns, end_ns: the host's monotonic clock; None for what did not begin.
    :param done: it was reached, and not refused by the kernel or the firmware.
    :param note: what made it, or why it is not done.
    """

    name: str
    start_ns: int | None
    end_ns: int | None
    done: bool
    note: str

    def __str__(self) -> str:
        return f"{self.name}: {self.note}" if self.note else self.name


_COMMANDS = (
    ("data measured", (SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA,)),
    ("VMSA measured", (SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA,)),
    ("measured", (SevCmd.KVM_SEV_LAUNCH_MEASURE,)),
    ("finished", (SevCmd.KVM_SEV_LAUNCH_FINISH,)),
)


def phases(launch: Launch) -> list[Phase]:
    """The phases of a launch in the order of a launch that goes well; always the same ones."""
    timeline = launch.timeline
    made = [e for e in timeline.requests(kvm.KVM_CREATE_VM) if e.failed]
    made += [e for e in timeline.recorded if e.request == kvm.KVM_CREATE_VM and e.result == timeline.vm]
    out = [
        _phase("VM created", made),
        _phase("initialised", timeline.commands(*INIT_COMMANDS)),
        _phase("vCPUs created", timeline.requests(kvm.KVM_CREATE_VCPU)),
        *(_phase(name, timeline.commands(*commands)) for name, commands in _COMMANDS),
    ]
    ended = timeline.end.get("t")
    end = int(ended) if isinstance(ended, int) else None
    if timeline.runs:
        vcpus = f"{len(timeline.runs)} of {len(timeline.vcpu_creations)} vCPUs"
        out.append(Phase("running", timeline.runs[0].time_ns, end, True, vcpus))
    else:
        out.append(Phase("running", None, None, False, "not reached"))
    how = f"{launch.exit}, while {launch.phase}" if launch.phase else str(launch.exit)
    return [*out, Phase("ended", end, end, True, how)]


def _phase(name: str, events: Sequence[Event]) -> Phase:
    if not events:
        return Phase(name, None, None, False, "not reached")
    done = [event for event in events if not event.failed]
    start, end = events[0].time_ns, max(event.time_ns + (event.duration_ns or 0) for event in events)
    if not done:
        return Phase(name, start, end, False, f"refused, {events[-1]}")
    times = f", {len(done)} times" if len(done) > 1 else ""
    return Phase(name, start, end, True, f"{done[0].name}{times}")
