# SPDX-License-Identifier: GPL-2.0-or-later
"""A formatter of probe reports, written from the description of the format: the reader's other direction."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from pytest_seves.evidence.probe_report import Canaries, Ghcb, ProbeReport

#: Fields of a fault line, of an exception and of a VMGEXIT, in their order.
FAULT = ("vector", "error", "rip", "cr2", "vmgexit", "info1", "info2")


def line(number: int, text: str) -> bytes:
    """One line with its number and checksum."""
    covered = f"SEVES1 n={number} {text}".encode()
    return covered + f" crc={zlib.crc32(covered):08x}\n".encode()


def console(texts: Iterable[str]) -> bytes:
    """Lines numbered from 0."""
    return b"".join(line(number, text) for number, text in enumerate(texts))


def _ghcb(ghcb: Ghcb) -> str:
    return f"ghcb={ghcb.offered[0]}..{ghcb.offered[1]} version={ghcb.used}"


def _vc(counts: Mapping[int, int]) -> str:
    return "vc=" + ",".join(f"{reason:x}:{count}" for reason, count in counts.items())


def _canaries(state: Canaries) -> str:
    names = ("gpr", "xmm", "cr3", "dr", "memory")
    return " ".join(f"{name}={'kept' if getattr(state, name) else 'changed'}" for name in names)


def texts(report: ProbeReport) -> list[str]:
    """The lines of a report, without number and checksum."""
    said = [
        f"begin scenario={report.scenario} cpus={report.expected} tag={report.tag:x} again={report.again:d} "
        f"sev_status={report.sev_status:x} cbit={report.cbit} {_ghcb(report.ghcb)} x2apic={report.x2apic:d}"
    ]
    said += [
        f"cpu={cpu.index} apic={cpu.apic_id} cpuid={cpu.cpuid_apic_id} arrived={cpu.arrived:d} "
        f"entry={cpu.entry} at={cpu.entry_address:x} cs={cpu.entry_cs:x} sev_status={cpu.sev_status:x} "
        f"{_ghcb(cpu.ghcb)} {_vc(cpu.vc)}"
        for cpu in report.cpus
    ]
    said += [f"beat={b.number} holding={b.holding} {_canaries(b.canaries)}" for b in report.beats]
    said += [f"canaries={h.cpu} checks={h.checks} {_canaries(h.canaries)}" for h in report.held]
    said += [f"parked={p.cpu} wakes={p.wakes} spurious={p.spurious}" for p in report.parked]
    said += [f"storm={s.cpu} rounds={s.rounds} bad={s.bad} {_vc(s.vc)}" for s in report.storms]
    said += [
        f"fault cpu={fault.cpu} "
        + " ".join(f"{name}={fault.what[name]:x}" for name in FAULT if name in fault.what)
        for fault in report.faults
    ]
    if report.result is not None:
        said.append(
            f"end scenario={report.scenario} lines={len(said)} cpus={report.started} "
            f"retries={report.retries} forced={report.forced} result={report.result}"
        )
    if report.returned:
        said.append("returned=1")
    return said
