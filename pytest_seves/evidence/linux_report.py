# SPDX-License-Identifier: GPL-2.0-or-later
"""What the init of a Linux guest (guest/linux) said on the console, among all that others say there.

Firmware and kernel use the same console. What a report says is what the guest says: it may be wrong, or lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from errno import EIO
from typing import Any

from pytest_seves.spec.ghcb import SEV_STATUS_SEV, SEV_STATUS_SEV_ES

from .probe_line import LINUX_FIELDS, VERSION, Line, LineError, parse_line
from .probe_report import read_drafts, refuse

_GUEST = "the Linux guest"
_OURS = f"{VERSION} ".encode()
#: What a kernel says once it has read SEV_STATUS: print_mem_encrypt_feature_info(). Older ones put AMD first.
_ACTIVE = re.compile(r"Memory Encryption Features active:(.*)")
_STATUS_BITS = {"SEV": SEV_STATUS_SEV, "SEV-ES": SEV_STATUS_SEV_ES}


@dataclass(frozen=True)
class LinuxCpu:
    """A CPU that the kernel knows, as init met it there.

    :ivar ran: init has run on it; False where it is offline.
    :ivar features: CPUID 0x8000001F EAX: what the vCPU is offered, not what is active.
    :ivar sev_status: SEV_STATUS as the msr driver read it; None where it could not, and `errno` says why:
        6 (ENXIO) there is no driver, 5 (EIO) the CPU has no such MSR.
    """

    index: int
    ran: bool
    apic_id: int
    features: int
    sev_status: int | None
    errno: int


@dataclass(frozen=True)
class Cycled:
    """A CPU that was taken offline and online again: how often each worked, and init ran on it afterwards."""

    cpu: int
    offline: int
    online: int
    ran: int
    errno: int


@dataclass(frozen=True)
class LinuxReport:
    """One boot. `result` is None where the end line is missing.

    :ivar kernel: its release.
    :ivar present, online: CPUs that there are, and those that were online when init came.
    :ivar log: lines of the kernel's log about memory encryption.
    :ivar last_online: CPUs that were online in the end, None without an end line.
    :ivar result: ``ok``, or ``failed``: a CPU was not online, or did not come back.
    """

    tag: int
    kernel: str
    present: int
    online: int
    cycles: int
    log: tuple[str, ...] = ()
    cpus: tuple[LinuxCpu, ...] = ()
    cycled: tuple[Cycled, ...] = ()
    last_online: int | None = None
    result: str | None = None

    @property
    def complete(self) -> bool:
        """The end line is there."""
        return self.result is not None

    @property
    def logged(self) -> frozenset[str]:
        """What the kernel says is active: ``{"SEV", "SEV-ES"}``; empty where it says nothing."""
        found = (_ACTIVE.search(line) for line in self.log)
        return frozenset(word for match in found if match for word in match[1].split()) & _STATUS_BITS.keys()

    @property
    def by_status(self) -> tuple[frozenset[str] | None, ...]:
        """What SEV_STATUS says is active, for each CPU that ran; None where it could not be read.

        On a CPU that has no such MSR nothing is.
        """
        return tuple(_active(cpu) for cpu in self.cpus if cpu.ran)


def _active(cpu: LinuxCpu) -> frozenset[str] | None:
    if cpu.sev_status is None:
        return frozenset() if cpu.errno == EIO else None
    return frozenset(name for name, bit in _STATUS_BITS.items() if cpu.sev_status & bit)


def read_linux_reports(console: bytes) -> tuple[LinuxReport, ...]:
    """All reports on a console, in order: one for each boot that came as far as init.

    Lines that do not begin as one of ours are the firmware's and the kernel's. A last line without its line
    feed is one that is still being written, and is left out.

    :raise Undecided: a line of ours is damaged, missing, or contradicts the rest.
    """
    return tuple(_report(draft.lines) for draft in read_drafts(console, _lines(console), _GUEST))


def _lines(console: bytes) -> Iterator[tuple[int, Line]]:
    offset = 0
    while (end := console.find(b"\n", offset)) >= 0:
        if console.startswith(_OURS, offset):
            try:
                yield offset, parse_line(console[offset:end], LINUX_FIELDS)
            except LineError as error:
                refuse(console, offset, str(error), _GUEST)
        offset = end + 1


def _report(lines: list[Line]) -> LinuxReport:
    begin = lines[0].values
    end: Mapping[str, Any] = next((line.values for line in lines if line.kind == "end"), {})
    return LinuxReport(
        tag=begin["tag"],
        kernel=begin["kernel"],
        present=begin["present"],
        online=begin["online"],
        cycles=begin["cycles"],
        log=tuple(line.values["text"] for line in lines if line.kind == "log"),
        cpus=tuple(_cpu(line.values) for line in lines if line.kind == "cpu"),
        cycled=tuple(_cycled(line.values) for line in lines if line.kind == "cycled"),
        last_online=end.get("cpus"),
        result=end.get("result"),
    )


def _cpu(values: Mapping[str, Any]) -> LinuxCpu:
    return LinuxCpu(
        index=values["cpu"],
        ran=values["ran"],
        apic_id=values["apic"],
        features=values["features"],
        sev_status=values["status"],
        errno=values["errno"],
    )


def _cycled(values: Mapping[str, Any]) -> Cycled:
    return Cycled(values["cycled"], values["offline"], values["online"], values["ran"], values["errno"])
