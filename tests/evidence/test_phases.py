# SPDX-License-Identifier: GPL-2.0-or-later
"""A launch told phase by phase, and its evidence as one file."""

from __future__ import annotations

import io
import zipfile
import zlib

from pytest_seves.evidence.archive import archive, members
from pytest_seves.evidence.launch import Exit, Launch, Output
from pytest_seves.evidence.phases import phases
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.evidence.timeline import Timeline
from pytest_seves.spec.sev import SevCmd
from tests.evidence import recording

NOTHING = Output(b"", b"", 0)


def launch(records: list[recording.Record], stderr: Output = NOTHING) -> Launch:
    """Evidence with this recording."""
    raw = recording.jsonl(records)
    return Launch(
        host="lab1",
        argv=("vmm",),
        timeline=Timeline.from_jsonl(raw),
        recording_z=zlib.compress(raw),
        qmp=QmpTranscript.from_chunks([]),
        console=NOTHING,
        stdout=NOTHING,
        stderr=stderr,
        exit=Exit(0, None),
    )


def test_a_whole_launch_has_every_phase() -> None:
    """In order, each with what made it; the length probe of LAUNCH_MEASURE is not a refusal."""
    told = phases(launch(recording.launch(vcpus=2)))
    assert [str(phase) for phase in told] == [
        "VM created: KVM_CREATE_VM",
        "initialised: KVM_SEV_ES_INIT",
        "vCPUs created: KVM_CREATE_VCPU, 2 times",
        "data measured: KVM_SEV_LAUNCH_UPDATE_DATA",
        "VMSA measured: KVM_SEV_LAUNCH_UPDATE_VMSA",
        "measured: KVM_SEV_LAUNCH_MEASURE",
        "finished: KVM_SEV_LAUNCH_FINISH",
        "running: 2 of 2 vCPUs",
        "ended: exit status 0",
    ]
    assert all(phase.done for phase in told)
    begun = [phase.start_ns for phase in told if phase.start_ns is not None]
    assert begun == sorted(begun)
    assert (told[0].start_ns, told[0].end_ns) == (100, 110)


def test_a_refused_launch_says_where_it_ended() -> None:
    """The phase that was refused tells by whom; later ones were not reached."""
    records = [
        recording.create_vm(),
        recording.command(SevCmd.KVM_SEV_ES_INIT),
        recording.command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, error=3, ret=-5),
    ]
    told = {phase.name: phase for phase in phases(launch(records))}
    refused = told["VMSA measured"]
    assert (refused.done, refused.start_ns) == (False, 300)
    assert (
        refused.note
        == "refused, #2 KVM_SEV_LAUNCH_UPDATE_VMSA (vm:11) = -5 EIO, firmware status 0x03 INVALID_CONFIG"
    )
    assert [name for name, phase in told.items() if phase.note == "not reached"] == [
        "vCPUs created",
        "data measured",
        "measured",
        "finished",
        "running",
    ]


def test_nothing_at_all() -> None:
    """A VMM that did nothing ended, and reached nothing."""
    told = phases(launch([]))
    assert [phase.done for phase in told] == [False] * 8 + [True]


def test_an_archive_has_everything_raw_and_readable() -> None:
    """The same evidence gives the same bytes; text for people is escaped, raw bytes are as they were."""
    hostile = Output(b"\x1b[31m\xff", b"\0end", 7)
    evidence = launch(recording.launch(), stderr=hostile)
    assert archive(evidence) == archive(evidence)
    with zipfile.ZipFile(io.BytesIO(archive(evidence))) as zipped:
        assert zipped.testzip() is None
        assert zipped.read("stderr.raw") == b"\x1b[31m\xff\0end"
        assert zipped.read("stderr.txt") == b"\\x1b[31m\\xff\n[... 7 bytes not kept ...]\n\\x00end"
        assert zipped.read("timeline.jsonl") == recording.jsonl(recording.launch())
        assert sorted(zipped.namelist()) == sorted(members(evidence))
