# SPDX-License-Identifier: GPL-2.0-or-later
"""The console of the probe guest: everything that can be wrong with it, and every report that it can hold."""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import Undecided
from pytest_seves.evidence.probe_report import (
    MAX_BYTES,
    Beat,
    Canaries,
    Fault,
    Ghcb,
    Held,
    Parked,
    ProbeCpu,
    ProbeReport,
    Storm,
    read_report,
    read_reports,
)
from tests.evidence.probe_console import console, line, texts

BEGIN = "begin scenario=boot cpus=2 tag=0 again=0 sev_status=3 cbit=51 ghcb=1..2 version=2 x2apic=1"
CPU = (
    "cpu={0} apic={0} cpuid={0} arrived=1 entry=reset-block at=ffffd044 cs=f000 sev_status=3 "
    "ghcb=1..2 version=2 vc=72:1,7b:1,7c:0,400:0,6e:0"
)
END = "end scenario=boot lines={} cpus=2 retries=0 forced=0 result=ok"
GOOD = console([BEGIN, CPU.format(0), CPU.format(1), END.format(3)])


FIRST = len(line(0, BEGIN))
SECOND = FIRST + len(line(1, CPU.format(0)))


def cut(text: bytes, number: int) -> bytes:
    """A console without one of its lines."""
    lines = text.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


@pytest.mark.parametrize(
    ("raw", "offset", "problem"),
    [
        (b"", 0, "wanted one report, got 0"),
        (b"Shell> \r\n", 0, "wanted 'SEVES1 n=... crc=...'"),
        (b"Shell> ", 0, "wanted 'SEVES1 n=... crc=...'"),
        (b"\0\xff" * 100 + b"\n" + GOOD, 0, "wanted 'SEVES1 n=... crc=...'"),
        (GOOD.replace(b"SEVES1", b"SEVES2"), 0, "wanted 'SEVES1 n=... crc=...'"),
        (GOOD.replace(b" apic=1", b" apic=2"), SECOND, "for this text, got crc="),
        (GOOD + b"x\n", len(GOOD), "wanted 'SEVES1 n=... crc=...'"),
        (GOOD[:-1], len(GOOD) - 1, "wanted an end line of scenario boot, got none"),
        (GOOD[:-60], len(GOOD) - 60, "wanted an end line of scenario boot, got none"),
        (cut(GOOD, 0), 0, "wanted a begin line first, got cpu"),
        (cut(GOOD, 1), FIRST, "wanted line n=1, got n=2: lines are lost or came twice"),
        (GOOD + GOOD, 0, "wanted one report, got 2"),
        (GOOD[:SECOND] + GOOD[FIRST:], SECOND, "wanted line n=2, got n=1: lines are lost or came twice"),
        (GOOD + line(4, END.format(4)), len(GOOD), "a second end line"),
        (console([BEGIN, END.format(2)]), FIRST, "wanted lines=1 in the end line, got 2"),
        (
            console([BEGIN, END.format(1).replace("boot", "park")]),
            FIRST,
            "begun as scenario boot, ended as park",
        ),
        (console([BEGIN, CPU.format(1), CPU.format(1)]), SECOND, "wanted cpu in rising order, got 1 again"),
        (console([BEGIN, "dance=1"]), FIRST, "wanted a line of begin, cpu,"),
        (console([BEGIN, "parked=1 wakes=2"]), FIRST, "wanted the fields parked wakes spurious"),
        (console([BEGIN, "parked=1 spurious=0 wakes=2"]), FIRST, "wanted the fields parked wakes spurious"),
        (console([BEGIN, "parked=1  wakes=2 spurious=0"]), FIRST, "wanted the fields"),
        (console([BEGIN, "parked=1 wakes=-2 spurious=0"]), FIRST, "wakes: wanted a decimal number, got '-2'"),
        (console([BEGIN, "parked=1 wakes=02 spurious=0"]), FIRST, "wakes: wanted a decimal number, got '02'"),
        (console([BEGIN, CPU.format(1).replace("d044", "D044")]), FIRST, "at: wanted a hexadecimal number"),
        (
            console([BEGIN, CPU.format(1).replace("reset-block", "door")]),
            FIRST,
            "entry: wanted reset-vector,",
        ),
        (console([BEGIN, CPU.format(1).replace("1..2", "1")]), FIRST, "ghcb: wanted two versions, got '1'"),
        (
            console([BEGIN, CPU.format(1).replace("7b:1", "72:2")]),
            FIRST,
            "vc: wanted a count for each reason",
        ),
        (console([BEGIN.replace("again=0", "again=2")]), 0, "again: wanted 0 or 1, got '2'"),
        (console([BEGIN, "fault cpu=1 vector=6"]), FIRST, "or cpu vmgexit info1 info2"),
    ],
)
def test_a_console_that_is_no_report_is_undecided(raw: bytes, offset: int, problem: str) -> None:
    """The error says where, what was wanted, and shows the console there."""
    with pytest.raises(Undecided) as caught:
        read_report(raw)
    assert problem in str(caught.value)
    assert caught.value.evidence["offset"] == offset
    assert len(str(caught.value)) < 3000


def test_interleaved_lines_are_undecided() -> None:
    """Two CPUs that write at once tear both lines; neither is believed."""
    one, two = line(1, CPU.format(0)), line(2, CPU.format(1))
    torn = bytes(byte for pair in zip(one, two, strict=True) for byte in pair)
    with pytest.raises(Undecided, match=r"wanted 'SEVES1.*SSEEVVEESS11"):
        read_report(line(0, BEGIN) + torn + line(3, END.format(3)))


@pytest.mark.parametrize("flood", [b"A", b"A\n", b"\n", line(0, BEGIN), GOOD, b"\xff\0\n"])
def test_a_flood_is_refused_at_once(flood: bytes) -> None:
    """10 MiB of anything take no time, and the message stays small."""
    raw = flood * ((10 << 20) // len(flood))
    started = time.monotonic()
    with pytest.raises(Undecided, match="a flood") as caught:
        read_report(raw)
    assert time.monotonic() - started < 1
    assert len(str(caught.value)) < 3000


def test_the_largest_guest_is_no_flood() -> None:
    """4096 vCPUs fit, with the longest lines there are."""
    cpus = tuple(dataclasses.replace(WIDE, index=index) for index in range(4096))
    report = dataclasses.replace(REPORT, cpus=cpus, started=4096)
    raw = console(texts(report))
    assert len(raw) < MAX_BYTES
    assert read_report(raw) == report


def test_half_a_line_may_still_come() -> None:
    """Reports are readable while the guest writes: what has no line feed yet is left out."""
    (report,) = read_reports(GOOD[:-10])
    assert (report.complete, len(report.cpus)) == (False, 2)


def test_what_comes_after_the_end_is_counted() -> None:
    """A vCPU that faults when the report has ended is not lost, nor is an act that did not end the guest."""
    late = line(4, "fault cpu=1 vector=6 error=0 rip=ffffe000 cr2=0") + line(5, "returned=1")
    report = read_report(GOOD + late)
    assert (report.complete, report.late, report.returned) == (True, 1, True)
    assert report.faults == (Fault(1, {"vector": 6, "error": 0, "rip": 0xFFFFE000, "cr2": 0}),)


def test_two_starts_are_two_reports() -> None:
    """A guest that was reset reports again."""
    again = console([BEGIN.replace("again=0", "again=1"), END.format(1)])
    assert [report.again for report in read_reports(GOOD + again)] == [False, True]


def test_a_captured_console_is_read() -> None:
    """The console of a SEV-ES guest with three vCPUs, as the guest itself wrote it, checksums included.

    Origin: payload/probe.bin, scenario storm, 200 rounds, under QEMU 7.2 and an emulated SEV-ES CPU.
    """
    raw = (Path(__file__).parent / "captured" / "probe-storm-es-3vcpu.txt").read_bytes()
    report = read_report(raw)
    assert (report.scenario, report.result, report.expected, report.started) == ("storm", "ok", 3, 3)
    assert (report.sev_status, report.cbit, report.ghcb) == (3, 39, Ghcb((1, 2), 2))
    assert [cpu.entry for cpu in report.cpus] == ["reset-vector", "reset-block", "reset-block"]
    assert [(storm.cpu, storm.rounds, storm.bad) for storm in report.storms] == [
        (n, 200, 0) for n in range(3)
    ]
    assert min(storm.vc[reason] for storm in report.storms for reason in (0x72, 0x7B)) >= 200
    assert console(texts(report)) == raw


U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
CANARIES = st.builds(Canaries, *[st.booleans()] * 5)
GHCB = st.builds(Ghcb, st.tuples(U32, U32), U32)
COUNTS = st.dictionaries(U64, U32, min_size=1, max_size=6)
FAULTS = st.builds(
    Fault,
    U32,
    st.one_of(
        st.fixed_dictionaries(dict.fromkeys(("vector", "error", "rip", "cr2"), U64)),
        st.fixed_dictionaries(dict.fromkeys(("vmgexit", "info1", "info2"), U64)),
    ),
)
ENTRIES = st.sampled_from(["reset-vector", "reset-block", "sipi-vector"])


def rising(item: st.SearchStrategy[object], key: str) -> st.SearchStrategy[tuple[object, ...]]:
    """Up to four items, their key in rising order."""
    unique = st.lists(item, max_size=4, unique_by=lambda one: getattr(one, key))
    return unique.map(lambda items: tuple(sorted(items, key=lambda one: getattr(one, key))))


REPORTS = st.builds(
    ProbeReport,
    scenario=st.from_regex(r"\A[a-z0-9-]{1,32}\Z"),
    expected=U32,
    tag=U64,
    again=st.booleans(),
    sev_status=U64,
    cbit=U32,
    ghcb=GHCB,
    x2apic=st.booleans(),
    cpus=rising(
        st.builds(ProbeCpu, U32, U32, U32, st.booleans(), ENTRIES, U64, U64, U64, GHCB, COUNTS), "index"
    ),
    beats=rising(st.builds(Beat, U32, U32, CANARIES), "number"),
    held=rising(st.builds(Held, U32, U32, CANARIES), "cpu"),
    parked=rising(st.builds(Parked, U32, U32, U32), "cpu"),
    storms=rising(st.builds(Storm, U32, U32, U32, COUNTS), "cpu"),
    faults=st.lists(FAULTS, max_size=3).map(tuple),
    result=st.sampled_from(["ok", "timeout", "unsupported", "fault"]),
    started=U32,
    retries=U32,
    forced=U32,
    returned=st.booleans(),
)
REPORT = ProbeReport("boot", 1, 0, False, 3, 51, Ghcb((1, 2), 2), True, result="ok", started=1)
WIDE = ProbeCpu(
    (1 << 32) - 1,
    (1 << 32) - 1,
    (1 << 32) - 1,
    True,
    "reset-vector",
    (1 << 32) - 1,
    0xF000,
    (1 << 64) - 1,
    Ghcb((65535, 65535), 2),
    dict.fromkeys((0x72, 0x7B, 0x7C, 0x400, 0x6E), (1 << 32) - 1),
)


@given(REPORTS)
def test_every_report_comes_back(report: ProbeReport) -> None:
    """Formatting by the description and reading gives the report again."""
    assert read_report(console(texts(report))) == report


@given(st.lists(REPORTS, max_size=3))
def test_reports_come_back_in_order(reports: list[ProbeReport]) -> None:
    """One after the other, one for each start."""
    assert list(read_reports(b"".join(console(texts(report)) for report in reports))) == reports


@given(st.binary(max_size=600))
def test_no_console_is_a_crash(raw: bytes) -> None:
    """Whatever the bytes: reports, or Undecided."""
    with suppress(Undecided):
        read_reports(raw)


@given(st.text(alphabet="SEV1 n=0cpubegind:,.crx\n", max_size=200))
def test_no_nearly_right_text_is_a_crash(text: str) -> None:
    """The same for text that has the words of the format, with a right checksum."""
    with suppress(Undecided):
        read_reports(console(text.split("\n")))


@given(st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    """No single byte can change on its way and be believed."""
    at = data.draw(st.integers(0, len(GOOD) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != GOOD[at]))
    changed = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    with pytest.raises(Undecided):
        read_report(changed)
