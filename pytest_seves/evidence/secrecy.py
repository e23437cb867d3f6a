# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a value that only the guest knows turned up in the evidence of its launch."""

from __future__ import annotations

from .core import parts
from .launch import Launch


def places_of(secret: int, launch: Launch) -> list[str]:
    """Where 32 bits of the guest's are found: ``kvm: #123 KVM_GET_REGS (vCPU 1) = 0``, ``monitor: ...``.

    Looked through are what ioctls read or wrote after LAUNCH_UPDATE_VMSA (all of them, where there was none),
    answers to QMP and monitor commands, answers of the gdbstub, and dumps of memory.
    """
    raw, shown = secret.to_bytes(4, "little"), f"{secret:08x}"
    updates = launch.timeline.vmsa_updates
    since = updates[0].time_ns if updates else 0
    calls = [event for event in launch.timeline.events if event.time_ns > since]
    found = [f"kvm: {event}" for event in calls if raw in (event.output or b"") + (event.input or b"")]
    found += [f"monitor: {e.command} {e.arguments}" for e in launch.qmp.exchanges if shown in str(e.reply)]
    found += [f"gdb: {sent}" for sent, answer in launch.gdb.exchanges if raw.hex() in (answer or "")]
    for number, dump in enumerate(launch.dumps, 1):
        notes, memory = parts(dump)
        found += [f"dumped registers: {number}"] if raw in notes else []
        found += [f"dumped memory: {number}"] if raw in memory else []
    return found
