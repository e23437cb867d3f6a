# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch that a report draws: of a few vCPUs, and each of its ioctls with lane, time and answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from errno import errorcode
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import Bundle, LaunchManifest
from pytest_seves.evidence.events import Event
from pytest_seves.evidence.timeline import Stage, Timeline
from pytest_seves.spec import sev
from pytest_seves.spec.sev import Policy

from .words import bounded

#: vCPUs that are drawn side by side, best first, and calls that are drawn.
_VCPUS = (2, 3, 4, 1, 8)
_SEVERAL = (2, 3, 4)
_CALLS = 400
_MOST = 1 << 62
#: Launches that are looked at: those that most tests judged come first.
_TRIED = 20
_TIMELINE = "timeline.jsonl"


def drawn(bundle: Bundle) -> dict[str, Any] | None:
    """The drawing's data; None where no launch can be drawn.

    A launch that a test judged, of a policy with the ES bit, without faults, that came to run.
    """
    for manifest in _candidates(bundle):
        try:
            timeline = Timeline.from_jsonl(bundle.content(manifest, _TIMELINE))
        except EvidenceError:
            continue  # of a launch whose recording is damaged nothing is drawn; verify names it
        if all(map(_sane, timeline.recorded)) and timeline.stage == Stage.RUNNING:
            return _data(manifest, timeline)
    return None


def _sane(call: Event) -> bool:
    """What the decoder takes as it comes: numbers of a size that can be drawn."""
    numbers = (call.time_ns, call.duration_ns, call.result)
    return all(number is None or (type(number) is int and abs(number) < _MOST) for number in numbers)


def _candidates(bundle: Bundle) -> Iterator[LaunchManifest]:
    def of_interest(manifest: LaunchManifest) -> bool:
        spec = manifest.spec
        policy = spec.get("policy")
        if type(policy) is not int or not 0 <= policy < 1 << 32:
            return False
        vcpus = spec.get("vcpus")
        return bool(policy & Policy.ES) and type(vcpus) is int and vcpus in _VCPUS and not spec.get("faults")

    def order(manifest: LaunchManifest) -> tuple[bool, int, int]:
        vcpus = manifest.spec["vcpus"]
        return vcpus not in _SEVERAL, -judged[manifest.path], _VCPUS.index(vcpus)

    judged = Counter(entry.path for result in bundle.results for entry in result.evidence)
    yield from sorted(filter(of_interest, bundle.manifests), key=order)[:_TRIED]


def _data(manifest: LaunchManifest, timeline: Timeline) -> dict[str, Any]:
    calls = timeline.recorded
    start = calls[0].time_ns
    return {
        "path": bounded(manifest.path),
        "id": manifest.id,
        "vcpus": manifest.spec["vcpus"],
        "policy": manifest.spec["policy"],
        "argv": [bounded(word) for word in manifest.argv][:100],
        "lanes": list(dict.fromkeys(_lane(call) for call in sorted(calls, key=_lane_order)))[:40],
        "calls": [
            {
                "at_us": (call.time_ns - start) // 1000,
                "took_us": None if call.duration_ns is None else call.duration_ns // 1000,
                "lane": _lane(call),
                "name": bounded(call.name, 80),
                "sev": call.sev is not None,
                "answer": _answer(call),
                "failed": call.failed,
                "rules": [bounded(rule, 80) for rule in call.rules],
            }
            for call in calls[:_CALLS]
        ],
        "left_out": max(len(calls) - _CALLS, 0),
    }


def _lane(call: Event) -> str:
    if call.vcpu is not None:
        return f"vCPU {call.vcpu}"
    kind = call.kind.partition(":")[0]
    return {"kvm": "/dev/kvm", "vm": "VM", "sev": "/dev/sev"}.get(kind, bounded(kind, 20))


def _lane_order(call: Event) -> tuple[int, int]:
    kind = call.kind.partition(":")[0]
    return ("sev", "kvm", "vm").index(kind) if kind in ("sev", "kvm", "vm") else 3, call.vcpu or 0


def _answer(call: Event) -> str:
    if call.result is None:
        return ""
    if call.result >= 0:
        return str(call.result) if call.result else ""
    status = f", {sev.firmware_status_name(call.sev.error)}" if call.sev is not None else ""
    return f"{errorcode.get(-call.result, call.result)}{status}"
