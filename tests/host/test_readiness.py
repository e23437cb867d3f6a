# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness: every row has been seen to fail, and says what to do."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_seves.host.facts import decode_facts
from pytest_seves.host.inventory import Expect, Firmware, GuestKernel, LabHost
from pytest_seves.host.readiness import Row, judge, ready
from pytest_seves.host.readiness_table import render, to_json

MILAN: dict[str, Any] = json.loads((Path(__file__).parent / "milan.json").read_text())
LAB1 = LabHost(
    name="lab1",
    file=None,
    address="192.0.2.10",
    user="seves",
    firmware=Firmware("/usr/share/OVMF/OVMF_CODE.fd"),
)
ROWS = [
    *(
        "cpu",
        "asids",
        "kvm-sev-es",
        "dev-kvm",
        "dev-sev",
        "platform",
        "platform-es",
        "sev-firmware",
        "sb-3023",
    ),
    *(
        "vm-types",
        "asids-free",
        "debug-swap",
        "vmm",
        "guest-firmware",
        "guest-firmware-hash",
        "guest-kernel",
        "memlock",
        "python",
    ),
    *("clock", "kernel", "expect-min-es-asids"),
]


def judged(change: dict[str, Any] | None = None, host: LabHost = LAB1) -> dict[str, Row]:
    """Rows of a healthy Milan host with some raw facts changed, by their path; None removes one."""
    raw = copy.deepcopy(MILAN)
    for path, value in (change or {}).items():
        *above, last = path.split("|")
        place = raw
        for key in above:
            place = place[key]
        place[last] = value
        if value is None:
            del place[last]
    return {row.id: row for row in judge(decode_facts(raw, now_ns=raw.get("time_ns")), host)}


def other(**changes: Any) -> LabHost:
    """The lab's host with other values."""
    return replace(LAB1, **changes)


LEAF = "cpuid|leaves|0x8000001f"
STATUS = "platform_status|hex"


@pytest.mark.parametrize(
    ("row", "state", "change", "advice"),
    [
        ("cpu", "fail", {LEAF: [0x3, 51, 509, 100]}, "BIOS: enable SMEE and SEV"),
        ("cpu", "fail", {"cpuid|leaves|0x80000000": [0x80000008, 0, 0, 0]}, "AMD EPYC"),
        ("asids", "fail", {"cpuid|leaves|0x80000000": [0x80000008, 0, 0, 0]}, "CPU row"),
        ("cpu", "unknown", {"cpuid|leaves": {}}, "/dev/cpu/0/cpuid"),
        ("asids", "fail", {LEAF: [0x3F, 51, 509, 1]}, "SEV-ES ASID space limit"),
        ("asids", "unknown", {"cpuid|leaves": {}}, "CPU row"),
        ("kvm-sev-es", "fail", {"params|kvm_amd|sev_es": "N"}, "options kvm_amd sev=1 sev_es=1"),
        (
            "kvm-sev-es",
            "fail",
            {"params|kvm_amd|sev_es": "0", "params|kvm|mmio_caching": "N"},
            "kvm.mmio_caching",
        ),
        ("kvm-sev-es", "fail", {"params|kvm_amd|sev_es": None}, "5.11"),
        ("kvm-sev-es", "fail", {"params|kvm_amd": {}}, "modprobe kvm_amd"),
        ("dev-kvm", "fail", {"devices|/dev/kvm": {"open": "ENOENT"}}, "enable SVM"),
        (
            "dev-kvm",
            "fail",
            {"devices|/dev/kvm": {"open": "EACCES", "mode": "0660", "group": "libvirt"}},
            "usermod -aG libvirt seves",
        ),
        (
            "dev-kvm",
            "fail",
            {"devices|/dev/kvm": {"open": "EACCES", "mode": "0600", "group": "root"}},
            "group should be",
        ),
        ("dev-kvm", "fail", {"devices|/dev/kvm": {"open": "ok", "api": 11}}, "no Linux KVM"),
        ("dev-kvm", "fail", {"devices|/dev/kvm": {"open": "EMFILE"}}, "unusual"),
        ("dev-kvm", "unknown", {"devices": None}, "unusual"),
        ("dev-sev", "fail", {"devices|/dev/sev": {"open": "ENOENT"}}, "modprobe ccp"),
        (
            "dev-sev",
            "fail",
            {"devices|/dev/sev": {"open": "EACCES", "mode": "0600", "group": "root"}},
            "60-sev.rules",
        ),
        ("dev-sev", "fail", {"devices|/dev/sev": {"open": "EACCES"}}, "usermod -aG kvm seves"),
        ("platform", "fail", {STATUS: "013700000000001500000000"}, "ccp.psp_init_on_probe is Y"),
        ("platform", "fail", {"platform_status": {"errno": "EIO", "fw_error": 1}}, "dmesg"),
        (
            "platform",
            "unknown",
            {"platform_status": {"errno": "EACCES"}, "devices|/dev/sev": {"open": "EACCES"}},
            "/dev/sev row",
        ),
        ("platform-es", "fail", {STATUS: "013701000000001500000000"}, "TMR allocation failed"),
        ("platform-es", "unknown", {STATUS: "013700000000001500000000"}, "row above"),
        ("sev-firmware", "fail", {STATUS: "001001000100000500000000"}, "0.17"),
        ("sev-firmware", "unknown", {"platform_status": None}, "/dev/sev row"),
        (
            "sb-3023",
            "fail",
            {"snp_platform_status|hex": "01370101" + "00" * 12 + "0400000000001bdb" + "00" * 8},
            "sev_snp=0",
        ),
        (
            "sb-3023",
            "unknown",
            {"snp_platform_status": None, "params|kvm_amd|sev_snp": "Y"},
            "CVE-2025-48514",
        ),
        ("vm-types", "fail", {"vm_types": 0b0101}, "unusable"),
        ("vm-types", "unknown", {"vm_types": None}, "/dev/kvm row"),
        ("asids-free", "fail", {"misc|current|sev_es": 99}, "stop other SEV-ES guests of lab1"),
        ("asids-free", "fail", {"misc|capacity|sev_es": None}, "SEV-ES ASID space limit"),
        ("asids-free", "unknown", {"misc": None}, "cgroup v2"),
        ("debug-swap", "warn", {"params|kvm_amd|debug_swap": "Y"}, "launch digest"),
        (
            "vmm",
            "fail",
            {"vmm": {"path": "qemu", "errno": "ENOENT", "error": "not in PATH=/bin"}},
            "[vmm] binary",
        ),
        ("vmm", "fail", {"vmm|version_line": None}, "does not run"),
        ("vmm", "fail", {"vmm|version_line": "QEMU emulator version 5.2.0"}, "6.0"),
        ("vmm", "unknown", {"vmm|version_line": "a VMM"}, "no version number"),
        (
            "guest-firmware",
            "fail",
            {"firmware": {"path": "/x.fd", "error": "No such file"}},
            "install an OVMF",
        ),
        ("guest-firmware", "fail", {"firmware|size": 1966000}, "reset block"),
        ("guest-firmware", "fail", {"firmware|tail_b64": "/" * 1024}, "OVMF_CODE.fd"),
        ("guest-firmware", "warn", {"firmware|path": "/usr/share/OVMF/OVMF_CODE.secboot.fd"}, "SMM"),
        (
            "guest-firmware",
            "unknown",
            {"firmware": {"path": None, "error": "no firmware named"}},
            "[firmware] path",
        ),
        (
            "guest-firmware-hash",
            "unknown",
            {"firmware": {"path": "/x.fd", "error": "No such file"}},
            "row above",
        ),
        ("memlock", "fail", {"memlock": [8 << 20, 8 << 20]}, "seves - memlock unlimited"),
        ("memlock", "unknown", {"memlock": None}, "launch will tell"),
        ("python", "fail", {"python": "3.8.20"}, "3.9"),
        ("python", "unknown", {"python": None}, ""),
        ("clock", "warn", {"uname|release": "6.1"}, "chrony"),
        ("clock", "unknown", {"time_ns": None}, ""),
        ("kernel", "unknown", {"uname": None}, ""),
        ("expect-min-es-asids", "fail", {"misc|capacity|sev_es": 0}, "min_es_asids"),
        ("expect-min-es-asids", "unknown", {"misc": None, "cpuid|leaves": {}}, "did not tell"),
    ],
)
def test_each_row_can_fail(row: str, state: str, change: dict[str, Any], advice: str) -> None:
    """A check that cannot fail is worth nothing; each way has its own advice and shows the value."""
    rows = judged(change)
    if row == "clock" and state == "warn":
        raw = {**MILAN, "time_ns": MILAN["time_ns"] + 6_000_000_000}
        rows = {found.id: found for found in judge(decode_facts(raw, now_ns=MILAN["time_ns"]), LAB1)}
    assert rows[row].state == state, rows[row]
    assert advice in rows[row].advice
    assert rows[row].value
    assert not (state == "fail" and ready(rows.values()))


def test_a_healthy_host_is_ready() -> None:
    """Every row is there, all are ok, and there is nothing to do."""
    rows = judged()
    assert list(rows) == ROWS
    assert {row.state for row in rows.values()} == {"ok"}
    assert not any(row.advice for row in rows.values())
    assert ready(rows.values())


@pytest.mark.parametrize(
    ("change", "host"),
    [
        ({"memlock": [0, 0], "cap_eff": "0000000000004000"}, LAB1),
        ({"memlock": [0, 0]}, other(model="linux-6.1")),
        ({"memlock": [528 << 20, 0]}, LAB1),
    ],
    ids=["cap-ipc-lock", "model", "enough"],
)
def test_a_small_limit_that_does_not_count(change: dict[str, Any], host: LabHost) -> None:
    """CAP_IPC_LOCK lifts the limit, the model pins nothing, and 528 MiB are enough for 512."""
    assert judged(change, host)["memlock"].state == "ok"


KERNEL = {"path": "/boot/vmlinuz-6.1", "sha256": "33" * 32, "size": 1, "release": "6.1.0"}
UNREAD = {"path": "/boot/vmlinuz-6.1", "errno": "EACCES", "error": "Permission denied"}


@pytest.mark.parametrize(
    ("told", "declared", "state", "said"),
    [
        (UNREAD, GuestKernel(), "ok", "Linux guests are skipped (/boot/vmlinuz-6.1: Permission denied)"),
        (UNREAD, GuestKernel("/boot/vmlinuz-6.1"), "fail", "/boot/vmlinuz-6.1: Permission denied"),
        (None, GuestKernel(), "ok", "none named: not told"),
        (KERNEL, GuestKernel(), "ok", "/boot/vmlinuz-6.1, 6.1.0, " + "33" * 32 + " (not pinned)"),
        (KERNEL, GuestKernel("/x", "33" * 32), "ok", "(as pinned)"),
        (KERNEL, GuestKernel("/x", "44" * 32), "fail", "33" * 32),
        ({**KERNEL, "release": None}, GuestKernel(), "ok", "no bzImage"),
    ],
)
def test_a_kernel_for_guests(
    told: dict[str, Any] | None, declared: GuestKernel, state: str, said: str
) -> None:
    """One that the lab file names must be there, and be the one that it pins; another may be missing."""
    row = judged({"guest_kernel": told}, other(guest=declared))["guest-kernel"]
    assert row.state == state
    assert said in row.value
    assert bool(row.advice) == (state == "fail")


def test_a_replaced_firmware_image_is_found() -> None:
    """A pinned hash that differs is a broken rig: digests would change without anybody knowing why."""
    row = judged(host=other(firmware=Firmware("/usr/share/OVMF/OVMF_CODE.fd", "ab" * 32)))[
        "guest-firmware-hash"
    ]
    assert row.state == "fail"
    assert row.value == "22" * 32
    assert "ab" * 32 in row.advice
    assert judged(host=other(firmware=Firmware("/x", "22" * 32)))["guest-firmware-hash"].state == "ok"


@pytest.mark.parametrize(
    ("expect", "row", "value"),
    [
        (Expect(cpu="9654"), "expect-cpu", "wanted 9654; got AMD EPYC 7313P 16-Core Processor"),
        (Expect(cbitpos=47), "expect-cbitpos", "wanted 47; got 51"),
        (Expect(min_api=(1, 56)), "expect-min-api", "wanted 1.56; got 1.55"),
        (Expect(min_build=22), "expect-min-build", "wanted 22; got 21"),
        (Expect(min_vmm=(9, 1)), "expect-min-vmm", "wanted 9.1; got 7.2.22"),
        (Expect(min_es_asids=100), "expect-min-es-asids", "wanted 100; got 99"),
        (Expect(sev_es=False), "expect-sev-es", "offered"),
    ],
)
def test_a_host_that_is_not_what_the_lab_file_says(expect: Expect, row: str, value: str) -> None:
    """A difference is a failure, never a wave of skips."""
    found = judged(host=other(expect=expect))[row]
    assert (found.state, found.value) == ("fail", value)


def test_a_host_that_is_what_the_lab_file_says() -> None:
    """Parts of the CPU's name in any case, and versions that are at least the wanted ones."""
    expect = Expect(
        cpu="epyc 7313p", cbitpos=51, min_api=(1, 55), min_build=21, min_vmm=(7, 2), min_es_asids=99
    )
    assert {row.state for row in judged(host=other(expect=expect)).values()} == {"ok"}


def test_a_host_without_sev_es_on_purpose() -> None:
    """sev_es = false: what is missing is a warning, and the host is ready."""
    rows = judged({"params|kvm_amd|sev_es": "N"}, other(expect=Expect(sev_es=False)))
    assert rows["kvm-sev-es"].state == "warn"
    assert rows["expect-sev-es"].value == "not offered: kvm_amd.sev_es"
    assert ready(rows.values())


@settings(deadline=None)  # shared machines stall
@given(
    items=st.dictionaries(st.sampled_from(sorted(MILAN)), st.none() | st.integers() | st.just({}), max_size=8)
)
def test_any_facts_are_judged(items: dict[str, Any]) -> None:
    """A host that says little gets a full table."""
    rows = judge(decode_facts({**MILAN, **items}, now_ns=0), LAB1)
    assert [row.id for row in rows] == ROWS
    assert render(rows)


def test_the_table_is_for_reading() -> None:
    """State, name and value in columns; below what is not ok, what to do."""
    rows = [
        Row("a", "CPU", "ok", "EPYC", "not shown"),
        Row("b", "memlock", "fail", "8 MiB; a guest of 512 MiB needs 528 MiB", "raise it"),
        Row("c", "clock", "unknown", ""),
    ]
    assert render(rows, 60).splitlines() == [
        "ok      CPU      EPYC",
        "FAIL    memlock  8 MiB; a guest of 512 MiB needs 528 MiB",
        "        -> raise it",
        "unknown clock",
        "",
        "NOT READY: 1 failed, 1 unknown, 1 ok",
    ]


_ROW = st.builds(
    Row,
    st.just("x"),
    st.text(max_size=40),
    st.sampled_from(["ok", "warn", "fail", "unknown"]),
    st.text(),
    st.text(),
)


@settings(deadline=None)  # shared machines stall
@given(rows=st.lists(_ROW, max_size=4), width=st.integers(0, 200))
def test_the_table_stays_within_its_width(rows: list[Row], width: int) -> None:
    """Whatever the host says, a line has its limit and holds printable characters only."""
    lines = render(rows, width).split("\n")
    assert max(map(len, lines)) <= max(width, 50)
    assert all(line.isprintable() for line in lines)


def test_text_of_the_host_cannot_command_the_terminal() -> None:
    """Escape sequences, carriage returns and bidirectional overrides arrive as their names."""
    text = render([Row("a", "\x1b[2J", "fail", "ok\rX\u202e\x9b31m", "\x07")], 80)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"\x1b[2J" in text
    assert r"ok\rX\u202e\x9b31m" in text


def test_colour_is_only_around_the_state() -> None:
    """With colour the same text, with the state marked."""
    rows = [Row("a", "CPU", "fail", "none", "buy one")]
    coloured = render(rows, 80, colour=True)
    assert coloured.startswith("\x1b[1;31mFAIL    \x1b[0mCPU")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(rows, 80)


def test_programs_get_json() -> None:
    """Raw values and advice, and one word for all."""
    got = json.loads(to_json(list(judged({"python": "3.8"}).values())))
    assert got["ready"] is False
    assert [row["id"] for row in got["rows"]] == ROWS
    assert {"id", "name", "state", "value", "advice"} == got["rows"][0].keys()
