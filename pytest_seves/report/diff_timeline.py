# SPDX-License-Identifier: GPL-2.0-or-later
"""Two launches of the same guest: the first ioctl, and the first measured byte or register, that differ.

Threads of a VMM take turns as they like, so the calls of each descriptor (the VM, each vCPU) are compared in
their own order; and what no two launches share is left out: addresses, descriptors, handles, time stamps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from pytest_seves.evidence.events import Event
from pytest_seves.evidence.registers import registers_before, registers_set
from pytest_seves.evidence.timeline import Timeline
from pytest_seves.spec import kvm, vmsa
from pytest_seves.spec.sev import SevCmd

Fields = dict[str, Any]

#: Requests whose argument is a number, and no address.
_NUMBERS = (kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU, kvm.KVM_CHECK_EXTENSION)
#: Requests whose result says something; of others, whether they failed and how.
_RESULTS = (kvm.KVM_CHECK_EXTENSION,)
#: Commands whose memory holds what was made by chance: certificate and session, nonce.
_CHANCE = (SevCmd.KVM_SEV_LAUNCH_START, SevCmd.KVM_SEV_LAUNCH_MEASURE)
_OFFSETS = {field.name: field.offset for field in vmsa.VMSA.fields}
_OWN = ("handle", "sev_fd", "fd")


def first_ioctl(left: Timeline, right: Timeline) -> tuple[str, str] | None:
    """What each side has where they first differ; None where they do not."""
    found = []
    ours, theirs = _streams(left), _streams(right)
    for kind in [*ours, *(kind for kind in theirs if kind not in ours)]:
        pairs = zip_longest(ours.get(kind, []), theirs.get(kind, []))
        for one, other in pairs:
            told = _differing(one, other)
            if told:
                at = (one or other).index if one or other else 0
                found.append((at, told))
                break
    return min(found)[1] if found else None


def first_measured(left: Timeline, right: Timeline) -> tuple[str, str, str] | None:
    """What differs first of what the launch digest covers, and what each side has: data, then VMSA fields."""
    for number, (one, other) in enumerate(zip_longest(_data(left), _data(right))):
        if one != other:
            return f"LAUNCH_UPDATE_DATA #{number}", _region(one), _region(other)
    if left.measured_vcpus != right.measured_vcpus:
        return "measured vCPUs", str(left.measured_vcpus), str(right.measured_vcpus)
    if not (left.vmsa_updates and right.vmsa_updates):
        return None
    for vcpu in left.measured_vcpus:
        mine = registers_before(left, vcpu, left.vmsa_update)
        yours = registers_before(right, vcpu, right.vmsa_update)
        for name in sorted(mine.keys() | yours.keys(), key=_place):
            if mine.get(name) != yours.get(name):
                return f"VMSA of vCPU {vcpu}: {name}", _value(mine.get(name)), _value(yours.get(name))
    return None


def _streams(timeline: Timeline) -> dict[str, list[Event]]:
    """Calls by what they were made on: the VM, each vCPU, a device."""
    found: dict[str, list[Event]] = {}
    for event in timeline.events:
        if not event.interrupted:
            name = event.kind if event.vcpu is not None else event.kind.partition(":")[0]
            found.setdefault(name, []).append(event)
    return found


def _differing(one: Event | None, other: Event | None) -> tuple[str, str] | None:
    if one is None or other is None:
        return _told(one), _told(other)
    if one.name != other.name:
        return _told(one), _told(other)
    mine, yours = _fields(one), _fields(other)
    for name in [*mine, *(name for name in yours if name not in mine)]:
        if mine.get(name) != yours.get(name):
            return (
                f"{_told(one)}: {name} = {_value(mine.get(name))}",
                f"{_told(other)}: {name} = {_value(yours.get(name))}",
            )
    return None


def _fields(event: Event) -> Fields:
    """What two launches of one guest have in common."""
    found: Fields = {}
    if event.request in _NUMBERS:
        found["argument"] = event.argument
    if event.failed or event.request in _RESULTS:
        found["result"] = event.result
    if event.sev is not None:
        found["firmware status"] = event.sev.error
        found.update(_plain(event.sev.before))
        if event.sev.id not in _CHANCE:
            found.update({f"memory {n}": part.sha256 for n, part in enumerate(event.sev.memory)})
    found.update(registers_set(event))
    if event.request == kvm.KVM_SET_USER_MEMORY_REGION and event.input is not None:
        layout = kvm.USERSPACE_MEMORY_REGION
        region = layout.decode(event.input[: layout.size])
        found.update({name: v for name, v in region.items() if name != "userspace_addr"})
    return found


def _plain(fields: Mapping[str, Any]) -> Fields:
    return {
        name: value
        for name, value in fields.items()
        if not name.endswith("addr") and name not in _OWN and not name.startswith("_")
    }


def _data(timeline: Timeline) -> Iterator[tuple[int, str]]:
    """(length, SHA-256) of each region that LAUNCH_UPDATE_DATA covered, in order."""
    for event in timeline.succeeded(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA):
        for part in event.command.memory:
            yield part.length, part.sha256


def _region(region: tuple[int, str] | None) -> str:
    return "none" if region is None else f"{region[0]} bytes, SHA-256 {region[1][:16]}..."


def _place(name: str) -> tuple[int, str]:
    """Where a field is in the VMSA."""
    return _OFFSETS.get(name.partition(".")[0], vmsa.VMSA.size), name


def _told(event: Event | None) -> str:
    return "no further call" if event is None else str(event)


def _value(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else str(value)
