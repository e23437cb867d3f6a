# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest did, for evidence: a running hash over its exits, the last of them, how each vCPU stands.

The same launch gives the same hash twice: everything in it is the guest's own doing, in guest time.
"""

from __future__ import annotations

import collections
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .machine import Machine

LOG_NAME = "guests.jsonl"
_LAST = 32
#: The hash is kept after every so many exits, for runs that were not ended at the same one.
CHECKPOINT = 10_000
_INTERRUPT = 1 << 16
_VMGEXIT = 1 << 17
_SIGNALLED = 1 << 18


class Trace:
    """One VM's.

    :param directory: of the model; one line is appended to its log when the guest is gone.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.exits = 0
        self.hash = 0
        self.counts: collections.Counter[int] = collections.Counter()
        self.notes: list[str] = []
        self._checkpoints: list[str] = []
        self._at_access = (0, 0, 0)
        self._last: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=_LAST)

    def exit(self, vcpu: int, code: int, rip: int) -> None:
        """An intercept."""
        self.exits += 1
        self.hash = hash((self.hash, vcpu, code, rip))
        self.counts[code] += 1
        if self.exits % CHECKPOINT == 0:
            self._checkpoints.append(_shown(self.hash))
        self._last.append((vcpu, code, rip))

    def vmgexit(self, msr: int) -> None:
        """What a VMGEXIT asked by the MSR protocol, or the address of its page."""
        self.hash = hash((self.hash, _VMGEXIT, msr))

    def interrupt(self, vector: int) -> None:
        """An interrupt was delivered."""
        self.hash = hash((self.hash, _INTERRUPT, vector))
        self.counts[_INTERRUPT] += 1

    def signalled(self) -> None:
        """A write signalled an eventfd; it is no exit to the VMM, and the exit that it was is in the hash."""
        self.counts[_SIGNALLED] += 1

    def access(self, now_ns: int) -> None:
        """The VMM is asked for a port or a register: up to here, two runs can be compared."""
        self._at_access = self.exits, self.hash, now_ns

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        self.notes.append(text)

    def summary(self, machine: Machine) -> dict[str, object]:
        """Everything, as JSON has it."""
        exits, value, now_ns = self._at_access
        return {
            "process": machine.vm.supervisor.process_id,
            "sev_es": machine.vm.es,
            "exits": self.exits,
            "hash": _shown(self.hash),
            "guest_time_ns": machine.now_ns,
            "at_last_access": {"exits": exits, "hash": _shown(value), "guest_time_ns": now_ns},
            "checkpoints": self._checkpoints,
            "counts": {f"{code:#x}": count for code, count in sorted(self.counts.items())},
            "vcpus": [processor.describe() for processor in machine.processors.values()],
            "last": [f"vCPU {vcpu} exit {code:#x} at {rip:#x}" for vcpu, code, rip in self._last],
            "notes": self.notes,
        }

    def write(self, machine: Machine) -> None:
        """Append the summary to the log."""
        line = json.dumps(self.summary(machine)).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(f"{self._directory}/{LOG_NAME}", flags, 0o600)
        except OSError:
            return  # the model's directory is gone, and the model with it
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _shown(value: int) -> str:
    return f"{value & (1 << 64) - 1:016x}"
