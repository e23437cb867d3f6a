# SPDX-License-Identifier: GPL-2.0-or-later
"""The console of a Linux guest: reports among what others say, and everything that can be wrong with them."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import Undecided
from pytest_seves.evidence.linux_report import Cycled, LinuxCpu, read_linux_reports
from pytest_seves.evidence.probe_report import read_reports
from tests.evidence.probe_console import console, line

BEGIN = "begin scenario=linux tag=5eed present=2 online=2 cycles=3 kernel=6.1.0-50-cloud-amd64"
CPU = "cpu={0} ran=1 apic={0} features=1000f status=3 errno=0"
CYCLED = "cycled=1 offline=3 online=3 ran=3 errno=0"
END = "end scenario=linux lines={} cpus=2 result=ok"
#: As older and newer kernels say it, arch/x86/mm/mem_encrypt.c.
OLD = "<6>[    0.1] AMD Memory Encryption Features active: SEV SEV-ES"
NEW = "<6>[    0.1] Memory Encryption Features active: AMD SEV SEV-ES"
STATUS = "<6>[    0.1] SEV: Status: SEV SEV-ES "


def log(number: int, text: str) -> str:
    """A line of the kernel's log in a report."""
    return f"log={number} text={text.encode().hex()}"


SAID = [BEGIN, log(0, NEW), log(1, STATUS), CPU.format(0), CPU.format(1), CYCLED, END.format(6)]
GOOD = console(SAID)
NOISE = b"\x1b[2J\x1b[01;01HBdsDxe: starting\r\n[    0.000000] Linux version 6.1.0 SEVES1 n=0\r\n\n"


def test_a_report_among_what_others_say() -> None:
    """Firmware and kernel speak before it and after it; each value is decoded."""
    (report,) = read_linux_reports(NOISE + GOOD + b"[    9.1] reboot: Power down\r\n")
    assert (report.tag, report.kernel, report.result, report.complete) == (
        0x5EED,
        "6.1.0-50-cloud-amd64",
        "ok",
        True,
    )
    assert (report.present, report.online, report.cycles, report.last_online) == (2, 2, 3, 2)
    assert report.log == (NEW, STATUS)
    assert report.cpus == tuple(LinuxCpu(n, True, n, 0x1000F, 3, 0) for n in (0, 1))
    assert report.cycled == (Cycled(1, 3, 3, 3, 0),)
    assert report.logged == {"SEV", "SEV-ES"}
    assert report.by_status == (report.logged, report.logged)


@pytest.mark.parametrize("said", [OLD, NEW])
def test_both_wordings_of_the_kernel(said: str) -> None:
    """Older kernels put AMD first, newer ones last; what is named is the same."""
    (report,) = read_linux_reports(console([BEGIN, log(0, said)]))
    assert report.logged == {"SEV", "SEV-ES"}
    assert not report.complete


@pytest.mark.parametrize(
    ("cpu", "active"),
    [
        ("status=0 errno=0", frozenset()),
        ("status=1 errno=0", frozenset({"SEV"})),
        ("status=7 errno=0", frozenset({"SEV", "SEV-ES"})),
        ("status=none errno=5", frozenset()),
        ("status=none errno=6", None),
    ],
)
def test_what_the_msr_says(cpu: str, active: frozenset[str] | None) -> None:
    """Bits 0 and 1 of SEV_STATUS; no such MSR is nothing active, no driver is unknown."""
    (report,) = read_linux_reports(console([BEGIN, f"cpu=0 ran=1 apic=0 features=0 {cpu}"]))
    assert report.by_status == (active,)


def test_a_line_that_is_not_of_the_kernel_names_nothing() -> None:
    """Words of the command line and of other drivers are no features."""
    for text in ("SEV SEV-ES", "Memory Encryption Features active: Intel TDX", "SEV: no such thing"):
        (report,) = read_linux_reports(console([BEGIN, log(0, text)]))
        assert report.logged == frozenset()


def test_each_boot_has_its_report() -> None:
    """A guest that rebooted reported twice; a line that is being written is left out."""
    first, second = read_linux_reports(GOOD + NOISE + GOOD[:-1])
    assert first.complete
    assert (second.complete, second.cycled) == (False, first.cycled)


FIRST = len(line(0, BEGIN))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (GOOD.replace(b"status=3", b"status=1"), "for this text, got crc="),
        (GOOD.replace(b"SEVES1 n=2", b"SEVES1n=2"), "wanted line n=2, got n=3: lines are lost"),
        (GOOD[FIRST:], "wanted a begin line first, got log"),
        (GOOD[:FIRST] + b"SEVES1 \xff\n" + GOOD[FIRST:], "wanted 'SEVES1 n=... crc=...'"),
        (console([BEGIN, "storm=1"]), "wanted a line of begin, log, cpu, cycled, end, got 'storm'"),
        (console([BEGIN, CPU.format(1), CPU.format(0)]), "wanted cpu in rising order"),
        (console([BEGIN, CYCLED, CYCLED]), "wanted cycled in rising order"),
        (console([BEGIN, "log=0 text=5"]), "text: wanted bytes in hexadecimal"),
        (console([BEGIN, "log=0 text=" + "41" * 161]), "text: wanted bytes in hexadecimal"),
        (console([BEGIN.replace("kernel=6.1", "kernel=6\u00e9")]), "wanted ASCII"),
        (console([BEGIN.replace("tag=5eed", "tag=0x5")]), "tag: wanted a hexadecimal number"),
        (console([BEGIN, CPU.format(0).replace("status=3", "status=")]), "status: wanted a hexadecimal"),
        (console([BEGIN, END.format(2)]), "wanted lines=1 in the end line, got 2"),
        (console([BEGIN, END.format(1).replace("linux", "boot")]), "begun as scenario linux, ended as boot"),
    ],
)
def test_a_damaged_report_is_undecided(raw: bytes, problem: str) -> None:
    """The error says what was wanted and whose console it is; nothing is half believed."""
    with pytest.raises(Undecided, match="console of the Linux guest at byte") as caught:
        read_linux_reports(raw)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_the_probe_guest_s_reader_refuses_it() -> None:
    """The two formats share their frame and are not taken for each other."""
    with pytest.raises(Undecided, match="begin: wanted the fields"):
        read_reports(GOOD)


@pytest.mark.parametrize("flood", [b"A", b"A\n", b"SEVES1 ", line(0, BEGIN), GOOD, b"\xff\0\n"])
def test_a_flood_is_refused_at_once(flood: bytes) -> None:
    """10 MiB of anything take no time, and the message stays small."""
    started = time.monotonic()
    with pytest.raises(Undecided, match="a flood") as caught:
        read_linux_reports(flood * ((10 << 20) // len(flood)))
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 3000


@given(
    at=st.integers(0, len(GOOD)),
    cut=st.integers(0, 60),
    put=st.binary(max_size=30),
    noise=st.binary(max_size=60),
)
def test_no_console_is_half_believed(at: int, cut: int, put: bytes, noise: bytes) -> None:
    """Whatever comes into a report or out of it: it is refused, or it says what it said, or less."""
    with suppress(Undecided):
        for report in read_linux_reports(noise + b"\n" + GOOD[:at] + put + GOOD[at + cut :]):
            assert report.log in ((), (NEW,), (NEW, STATUS))
            assert {cpu.sev_status for cpu in report.cpus} <= {3}
