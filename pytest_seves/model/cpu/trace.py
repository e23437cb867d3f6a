# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest did, for evidence: a running hash over its exits, the last of them, how each vCPU stands.

The same launch gives the same hash twice: all in it is the guest's own doing, in guest time, but for one
thing. The VMM's RTC goes by the clock on the wall, and a guest that reads in its register A that an update is
in progress (UIP: in the last 244 us of a second, and until the VMM's timer has run) waits for its end. From
there on two runs cannot be compared.

Source: Motorola MC146818A data sheet, register A; QEMU hw/rtc/mc146818rtc.c update_in_progress().
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
#: The hash is kept after every so many exits, for runs that were not ended at the same one, until the VMM's
#: clock decides what the guest does.
CHECKPOINT = 10_000
_INTERRUPT = 1 << 16
_VMGEXIT = 1 << 17
_SIGNALLED = 1 << 18
_RTC_INDEX, _RTC_DATA = 0x70, 0x71
_NMI_GATE, _REGISTER_A, _UPDATE_IN_PROGRESS = 0x80, 0x0A, 0x80


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
        self._rtc_register = 0
        self._rtc_update: int | None = None
        self._at_access = (0, 0, 0)
        self._last: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=_LAST)

    def exit(self, vcpu: int, code: int, rip: int) -> None:
        """An intercept."""
        self.exits += 1
        self.hash = hash((self.hash, vcpu, code, rip))
        self.counts[code] += 1
        if self.exits % CHECKPOINT == 0 and self._rtc_update is None:
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

    def port_written(self, port: int, data: bytes) -> None:
        """The VMM gets what the guest writes; at one port it chooses the RTC's register."""
        if port == _RTC_INDEX:
            self._rtc_register = data[-1] & ~_NMI_GATE

    def port_read(self, port: int, data: bytes) -> None:
        """The guest gets what the VMM has answered."""
        updating = port == _RTC_DATA and self._rtc_register == _REGISTER_A and data[-1] & _UPDATE_IN_PROGRESS
        if updating and self._rtc_update is None:
            self._rtc_update = self.exits

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
            "at_rtc_update": self._rtc_update,
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
