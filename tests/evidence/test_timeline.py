# SPDX-License-Identifier: GPL-2.0-or-later
"""Timelines: what is refused, and what verdicts read from them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.timeline import Stage, Timeline, after, names
from pytest_seves.spec import kvm, sev
from pytest_seves.spec.sev import SevCmd
from tests.evidence.recording import command, create_vcpu, create_vm, ioctl, jsonl, launch, run, timeline


def test_a_recording_without_an_end_is_refused() -> None:
    """A recorder that was killed leaves no basis for a verdict."""
    with pytest.raises(EvidenceError, match="no end line after 13 lines"):
        Timeline.from_jsonl(jsonl(launch(), end=False))


def test_another_format_is_refused() -> None:
    """A recording of another version says which was wanted and which it is."""
    raw = jsonl(launch()).replace(b"seves-timeline/1", b"seves-timeline/9")
    with pytest.raises(
        EvidenceError, match=r"wanted format 'seves-timeline/1' in line 1, got 'seves-timeline/9'"
    ):
        Timeline.from_jsonl(raw)


def test_an_empty_recording_is_refused() -> None:
    """No line at all is an error of ours."""
    with pytest.raises(EvidenceError, match="an empty recording"):
        Timeline.from_jsonl(b"")


def test_a_damaged_line_is_named() -> None:
    """A line that is not JSON is named by its number."""
    lines = jsonl(launch()).splitlines()
    lines[3] = lines[3][:20]
    with pytest.raises(EvidenceError, match="line 4: not JSON"):
        Timeline.from_jsonl(b"\n".join(lines))


@pytest.mark.parametrize(
    "damage", [{"in": "zz"}, {"req": None}, {"tid": "x"}, {"in": "00"}, {"sev": {"id": 2, "in": "00"}}]
)
def test_a_field_that_does_not_fit_is_refused(damage: dict[str, object]) -> None:
    """A field of the wrong kind or length is an error of ours, never a verdict."""
    records = [create_vm(), {**command(SevCmd.KVM_SEV_ES_INIT), "out": None, **damage}]
    with pytest.raises(EvidenceError, match="timeline event 1"):
        timeline(records)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    """No bytes make the decoder fail in another way than by saying so."""
    with pytest.raises(EvidenceError):
        Timeline.from_jsonl(noise)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_odd_json_is_refused_or_decoded(value: object) -> None:
    """A line of valid JSON that means nothing is refused."""
    raw = jsonl([]).splitlines()
    raw.insert(1, json.dumps(value).encode())
    with pytest.raises(EvidenceError):
        Timeline.from_jsonl(b"\n".join(raw))


def test_a_correct_launch() -> None:
    """The questions that verdicts ask, of a launch that is right."""
    seen = timeline(launch(3))
    assert seen.stage == Stage.RUNNING
    assert seen.vm_type == kvm.KVM_X86_DEFAULT_VM
    assert seen.init_path == SevCmd.KVM_SEV_ES_INIT
    assert seen.created_vcpus == seen.measured_vcpus == [0, 1, 2]
    assert len(seen.measures) == 2
    assert seen.commands(SevCmd.KVM_SEV_LAUNCH_START)[0].command.before["policy"] == 5


def test_events_are_in_order_of_entry() -> None:
    """Lines are written at the end of a call; the order that counts is that of its beginning."""
    raw = jsonl(launch()).splitlines()
    shuffled = [raw[0], *reversed(raw[1:-1]), raw[-1]]
    assert names(Timeline.from_jsonl(b"\n".join(shuffled)).events) == names(timeline(launch()).events)


def test_a_vcpu_made_after_the_update_is_not_measured() -> None:
    """One LAUNCH_UPDATE_VMSA covers the vCPUs that exist then, and no others."""
    update = command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)
    seen = timeline([create_vm(), create_vcpu(0), update, create_vcpu(1)])
    assert seen.created_vcpus == [0, 1]
    assert seen.measured_vcpus == [0]


def test_an_update_that_failed_measures_nothing() -> None:
    """A refused LAUNCH_UPDATE_VMSA covers no vCPU."""
    failed = command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, error=3, ret=-5)
    seen = timeline([create_vm(), create_vcpu(0), failed])
    assert seen.measured_vcpus == []
    assert "firmware status 0x03 INVALID_CONFIG" in str(seen.commands(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)[0])


def test_a_dropped_call_never_happened() -> None:
    """A dropped call is in the recording, but the product is judged as if it had not made it."""
    dropped = command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, executed=False, rules=["vmsa-update-dropped"])
    seen = timeline([create_vm(), create_vcpu(0), dropped])
    assert seen.commands(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA) == ()
    assert len(seen.recorded) == 3


def test_an_interrupted_call_is_not_counted() -> None:
    """A call that a signal ended before it began is made again by the kernel: it is one call, not two."""
    interrupted = command(SevCmd.KVM_SEV_ES_INIT, ret=-512, interrupted=True)
    seen = timeline([create_vm(), interrupted, command(SevCmd.KVM_SEV_ES_INIT)])
    assert len(seen.init) == 1


def test_a_call_that_a_fault_failed_did_happen() -> None:
    """A call that a fault answered was made by the product, and refused."""
    refused = command(SevCmd.KVM_SEV_ES_INIT, ret=-25, executed=False, rules=["kvm-without-es"])
    seen = timeline([create_vm(), refused])
    assert names(seen.init) == ["KVM_SEV_ES_INIT"]
    assert (seen.stage, seen.attempted) == (Stage.VM_CREATED, Stage.INITIALISED)


def test_another_vm_is_left_out() -> None:
    """A VMM that makes a second VM, to probe something, is judged by the one that is the guest."""
    probe = [
        ioctl(kvm.KVM_CREATE_VM, kind="kvm", vm=None, ret=99),
        ioctl(kvm.KVM_CREATE_VCPU, vm=99, ret=100),
    ]
    seen = timeline([*probe, *launch(1)])
    assert seen.created_vcpus == [0]


def test_nothing_recorded_is_nothing_reached() -> None:
    """A VMM that never opened /dev/kvm has not begun."""
    assert timeline([]).stage == Stage.NOTHING


def test_after_compares_entries() -> None:
    """`after` takes what entered the kernel later."""
    seen = timeline(launch(2))
    update = seen.vmsa_updates[0]
    assert after(seen.vcpu_creations, update) == []
    assert len(after(seen.runs, update)) == 2


def test_commands_to_the_device_are_named() -> None:
    """A command on /dev/sev goes by its name, and what the platform answered is decoded."""
    status = sev.SEV_USER_DATA_STATUS.encode(api_major=1, build=24)
    known = ioctl(sev.SEV_ISSUE_CMD, kind="sev", vm=None, issue={"cmd": 1, "out": status.hex()})
    seen = timeline([known, ioctl(sev.SEV_ISSUE_CMD, kind="sev", vm=None, issue={"cmd": 99})])
    assert names(seen.events) == ["SEV_PLATFORM_STATUS", "SEV_ISSUE_CMD 99 (unknown)"]
    assert seen.events[0].issue is not None
    assert seen.events[0].issue["status"]["build"] == 24


def test_register_writes_after_the_update() -> None:
    """VMSA-6 is decided by writes after LAUNCH_UPDATE_VMSA: a right launch has none."""
    write = ioctl(kvm.KVM_SET_REGS, kind="vcpu:0", ret=None, before=kvm.REGS.encode(rip=0xFFF0))
    right = launch(1)
    right.insert(4, write)
    seen = timeline(right)
    assert len(seen.register_writes()) == 1
    assert after(seen.register_writes(), seen.vmsa_update) == []
    wrong = timeline([*right, write])
    assert names(after(wrong.register_writes(), wrong.vmsa_update)) == ["KVM_SET_REGS"]


@pytest.mark.parametrize(
    ("number", "counts"), [(0x1B, False), (0x10, False), (0xC0000080, True), (0xC0000081, True)]
)
def test_register_writes_are_those_of_vmsa_fields(number: int, counts: bool) -> None:
    """KVM_SET_MSRS counts for what it sets: the post-launch reset of QEMU 9.1 writes IA32_APIC_BASE."""
    entry = kvm.MSR_ENTRY.encode(index=number, data=1)
    write = ioctl(kvm.KVM_SET_MSRS, kind="vcpu:0", before=kvm.MSRS.encode(nmsrs=1) + entry)
    assert len(timeline([*launch(1), write]).register_writes()) == counts


def test_an_unknown_command_stays_visible() -> None:
    """A sub-command that this version does not know is named by its number."""
    record = command(SevCmd.KVM_SEV_INIT)
    record["sev"] = {"id": 77}
    assert names(timeline([create_vm(), record, run(0)]).events)[1] == "KVM_SEV_77 (unknown)"
