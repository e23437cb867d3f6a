# SPDX-License-Identifier: GPL-2.0-or-later
"""``pytest-seves diff A B``: what differs, where first, and what two runs never have in common."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from pytest_seves import cli
from pytest_seves.evidence.launch import Launch, Output
from pytest_seves.evidence.timeline import Timeline
from pytest_seves.report.diff_timeline import first_ioctl, first_measured
from pytest_seves.spec import kvm, sev
from pytest_seves.spec.sev import SevCmd
from tests.evidence import bundles, recording
from tests.evidence.recording import Record, command, create_vcpu, create_vm, ioctl

START = sev.KVM_SEV_LAUNCH_START_DATA


def registers(vcpu: int, **values: int) -> Record:
    """KVM_SET_REGS of a vCPU."""
    return ioctl(kvm.KVM_SET_REGS, kind=f"vcpu:{vcpu}", before=kvm.REGS.encode(**values))


def records(
    *,
    policy: int = 5,
    vm: int = 11,
    address: int = 0x1000,
    rip: int = 0xFFF0,
    rsp: int = 0,
    image: str = "aa",
) -> list[Record]:
    """A launch of two vCPUs; some of it is another one each time."""
    data = [{"addr": address, "len": 4096, "sha256": image * 32}]
    made = [
        create_vm(),
        command(SevCmd.KVM_SEV_ES_INIT),
        command(SevCmd.KVM_SEV_LAUNCH_START, data=START.encode(policy=policy, handle=vm, dh_uaddr=address)),
        create_vcpu(0),
        create_vcpu(1),
        registers(0, rip=rip, rsp=rsp),
        registers(1, rip=rip),
        command(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA),
        command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA),
        command(SevCmd.KVM_SEV_LAUNCH_FINISH),
        recording.run(0),
        recording.run(1),
    ]
    made[7]["sev"]["mem"] = data
    return [_of(record, vm) for record in made]


def _of(record: Record, vm: int) -> Record:
    """The record with another descriptor of the VM."""
    kind = str(record["kind"]).replace(f"vm:{recording.VM}", f"vm:{vm}")
    ret = vm if record["req"] == kvm.KVM_CREATE_VM else record["ret"]
    return {**record, "kind": kind, "vm": vm if record["vm"] is not None else None, "ret": ret}


def timeline(made: list[Record]) -> Timeline:
    """These records, decoded."""
    return recording.timeline(made)


def test_what_no_two_launches_share_is_no_difference() -> None:
    """Addresses, descriptors and handles differ each time, and threads take turns as they like."""
    one, other = records(), records(vm=14, address=0x7FFF0000)
    other[5], other[6] = other[6], other[5]
    assert first_ioctl(timeline(one), timeline(other)) is None
    assert first_measured(timeline(one), timeline(other)) is None


CHANGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "policy": (
        {"policy": 7},
        "#2 KVM_SEV_LAUNCH_START (vm:11) = 0: policy = 0x5",
        "#2 KVM_SEV_LAUNCH_START (vm:11) = 0: policy = 0x7",
    ),
    "register": (
        {"rsp": 0x7000},
        "#5 KVM_SET_REGS (vCPU 0) = 0: rsp = 0x0",
        "#5 KVM_SET_REGS (vCPU 0) = 0: rsp = 0x7000",
    ),
    "data": ({"image": "bb"}, f"memory 0 = {'aa' * 32}", f"memory 0 = {'bb' * 32}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_differing_ioctl_is_shown_decoded(change: str) -> None:
    """Its name, vCPU and field."""
    values, left, right = CHANGES[change]
    found = first_ioctl(timeline(records()), timeline(records(**values)))
    assert found is not None
    assert found[0].endswith(left)
    assert found[1].endswith(right)


def test_a_call_that_one_side_lacks() -> None:
    """A dropped LAUNCH_UPDATE_VMSA shows as the next call of the VM in its place."""
    without = [record for record in records() if record.get("sev", {}).get("id") != 4]
    found = first_ioctl(timeline(records()), timeline(without))
    assert found == ("#8 KVM_SEV_LAUNCH_UPDATE_VMSA (vm:11) = 0", "#8 KVM_SEV_LAUNCH_FINISH (vm:11) = 0")


def test_a_timeline_that_ends_before_the_other() -> None:
    """The side that ends says so."""
    found = first_ioctl(timeline(records()), timeline(records()[:-1]))
    assert found == ("#11 KVM_RUN (vCPU 1)", "no further call")


def test_an_ioctl_that_fails_on_one_side() -> None:
    """The result and the firmware's status are part of it."""
    failing = records()
    failing[8] = command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, error=3, ret=-5)
    found = first_ioctl(timeline(records()), timeline(failing))
    assert found is not None
    assert found[1].startswith("#8 KVM_SEV_LAUNCH_UPDATE_VMSA (vm:11) = -5 EIO, firmware status 0x03")


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"rip": 0xB004}, ("VMSA of vCPU 0: rip", "0xfff0", "0xb004")),
        ({"rsp": 0x7000, "rip": 0xB004}, ("VMSA of vCPU 0: rip", "0xfff0", "0xb004")),  # first in the page
        ({"rsp": 0x7000}, ("VMSA of vCPU 0: rsp", "0x0", "0x7000")),
    ],
)
def test_the_first_differing_field_of_the_vmsa(values: dict[str, Any], wanted: tuple[str, str, str]) -> None:
    """By its place in the page, with the vCPU."""
    assert first_measured(timeline(records()), timeline(records(**values))) == wanted


def test_measured_data_comes_before_the_vmsa() -> None:
    """As the firmware digests them."""
    found = first_measured(timeline(records()), timeline(records(image="bb", rip=1)))
    assert found is not None
    assert found[0] == "LAUNCH_UPDATE_DATA #0"
    assert found[1].startswith("4096 bytes, SHA-256 aaaa")


def launch(made: list[Record], **given: Any) -> Launch:
    """A launch with this recording."""
    raw = recording.jsonl(made)
    return bundles.launch(timeline=Timeline.from_jsonl(raw), recording_z=zlib.compress(raw), **given)


def facts(root: Path, raw: dict[str, Any]) -> None:
    """Put a facts file into the bundle."""
    record = {"format": "pytest-seves-facts", "version": 1, "raw": raw, "now_ns": 0, "lab": {}}
    (root / "lab1/facts.json").write_text(json.dumps({**record, "readiness": []}))
    bundles.seal(root)


def diff(capsys: pytest.CaptureFixture[str], *roots: Path) -> tuple[int, str]:
    """Exit status, and what was printed."""
    status = cli.main(["diff", *map(str, roots)])
    told = capsys.readouterr()
    return status, told.out + told.err


def status(guests: int, build: int = 24) -> dict[str, str]:
    """SEV_PLATFORM_STATUS as the agent tells it."""
    layout = sev.SEV_USER_DATA_STATUS
    return {"hex": layout.encode(api_major=1, api_minor=55, state=1, build=build, guest_count=guests).hex()}


def test_equal_runs_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, although time has passed and the guests' count is another one."""
    for name, guests in (("a", 0), ("b", 3)):
        bundles.write(tmp_path / name, launch(records(vm=11 + guests)))
        facts(tmp_path / name, {"time_ns": guests, "platform_status": status(guests)})
    assert diff(capsys, tmp_path / "a", tmp_path / "b") == (
        0,
        "verdicts: equal\nfacts: equal\nlaunches: equal\n",
    )


def test_all_that_differs_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1; verdicts, facts, what was measured, and the first ioctl."""
    bundles.write(tmp_path / "a", launch(records()))
    bundles.write(tmp_path / "b", launch(records(rsp=0x7000)), outcome="failed")
    facts(tmp_path / "a", {"microcode": "0x1", "platform_status": status(0)})
    facts(tmp_path / "b", {"microcode": "0x2", "platform_status": status(0, build=25)})
    code, told = diff(capsys, tmp_path / "a", tmp_path / "b")
    assert code == 1
    place = "lab1/launches/001-2vcpu-ES+NODBG"
    assert told.splitlines() == [
        "verdicts: 1 differ",
        f"  {bundles.TEST}",
        "    A: passed",
        "    B: failed: assert 1 == 2",
        "facts: 2 differ",
        "  lab1: microcode",
        '    A: "0x1"',
        '    B: "0x2"',
        "  lab1: platform.build",
        "    A: 24",
        "    B: 25",
        "launches: 1 differ",
        f"  launch digest: VMSA of vCPU 0: rsp ({place} | {place})",
        "    A: 0x0",
        "    B: 0x7000",
        f"  first differing ioctl ({place} | {place})",
        "    A: #5 KVM_SET_REGS (vCPU 0) = 0: rsp = 0x0",
        "    B: #5 KVM_SET_REGS (vCPU 0) = 0: rsp = 0x7000",
    ]


def test_hostile_text_does_nothing_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fact with escape sequences is shown escaped."""
    for name in "ab":
        bundles.write(tmp_path / name, bundles.launch(console=Output(b"\x1b[2J", b"", 0)))
        facts(tmp_path / name, {f"\x1b[31m{name}\n": "\x1b]0;x\x07"})
    code, told = diff(capsys, tmp_path / "a", tmp_path / "b")
    assert code == 1
    assert r"\x1b[31ma\n" in told
    assert "\x1b" not in told


def test_an_incomplete_run_is_compared_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there is equal; the note says why there may be less."""
    bundles.write(tmp_path / "a")
    bundles.write(tmp_path / "b", sealed=False)
    code, told = diff(capsys, tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert told.startswith(f"note: {tmp_path / 'b'}: incomplete")


def test_a_call_of_the_wrong_size_is_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording that decodes, and whose registers do not, is named."""
    short = records()
    short[5] = ioctl(kvm.KVM_SET_REGS, kind="vcpu:0", before=b"12")
    for name in "ab":
        bundles.write(tmp_path / name, launch(short))
    code, told = diff(capsys, tmp_path / "a", tmp_path / "b")
    assert code == 2
    assert "001-2vcpu-ES+NODBG: a call cannot be decoded: " in told


def test_trouble_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no bundle, or was edited, is neither equal nor different."""
    place = bundles.write(tmp_path / "a")
    assert diff(capsys, tmp_path / "a", tmp_path)[0] == 2
    (place / "console.raw").write_bytes(b"jello\n")
    code, told = diff(capsys, tmp_path / "a", tmp_path / "a")
    assert code == 2
    assert "console.raw: it was changed" in told
    with pytest.raises(SystemExit) as usage:
        cli.main(["diff", "one"])
    assert usage.value.code == 2
