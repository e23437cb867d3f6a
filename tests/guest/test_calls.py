# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of direct calls and their answers; then both ends, on every modelled kernel."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent import program
from pytest_seves.errors import AgentRemoteError, HostError, Undecided, Unsupported
from pytest_seves.guest import calls
from pytest_seves.guest.answers import Answers
from pytest_seves.guest.archive import Archive, Record
from pytest_seves.guest.calls import At, create_vcpu, create_vm, needed, open_kvm, sev
from pytest_seves.guest.direct import Kvm
from pytest_seves.guest.init_path import ES_INIT, INIT2, INIT_PATHS, InitPath
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost
from pytest_seves.model.profiles import NAMES as PROFILES
from pytest_seves.spec import kvm as spec
from pytest_seves.spec.sev import NO_FIRMWARE_CALL, SEV_USER_DATA_STATUS, FirmwareStatus, SevCmd

ES = SevCmd.KVM_SEV_ES_INIT
#: A guest that should end at once and has not after so long hangs, however slow the machine is.
HANGS_S = 20.0


def test_unknown_fields_are_refused() -> None:
    """A field that the sub-command's structure does not have is a mistake of the test."""
    with pytest.raises(ValueError, match="kvm_sev_launch_start has no field 'polcy'"):
        sev(SevCmd.KVM_SEV_LAUNCH_START, polcy=4)


def test_answers_match_their_steps() -> None:
    """An agent that answers too little is not believed."""
    with pytest.raises(ValueError, match="2 steps, 1 answers"):
        Answers([open_kvm(), create_vm(0)], [{"result": 0, "errno": None}])


def refused() -> Answers:
    """Three steps, of which the second was refused."""
    steps = [open_kvm(), create_vm(3), sev(ES)]
    return Answers(steps, [{"result": 0, "errno": None}, {"result": -22, "errno": "EINVAL"}, {"not_run": 1}])


def test_a_step_that_was_not_run_decides_nothing() -> None:
    """Taking its answer is undecided, and says which step was refused."""
    message = r"#2 KVM_SEV_ES_INIT \(vm\) was not run, since <#1 KVM_CREATE_VM \(kvm\) = -22 EINVAL>"
    with pytest.raises(Undecided, match=message):
        refused()[-1].errno  # noqa: B018
    assert [answer.errno for answer in refused().given] == [None, "EINVAL"]


def test_a_transcript_has_every_step() -> None:
    """One line each, those that were not run with the reason."""
    assert list(refused().lines()) == [
        "#0 open /dev/kvm = 0",
        "#1 KVM_CREATE_VM (kvm) = -22 EINVAL",
        "#2 KVM_SEV_ES_INIT (vm): not run, since #1 was refused",
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"result": 0, "errno": None, "firmware": NO_FIRMWARE_CALL}, "<#0 KVM_SEV_ES_INIT (vm) = 0>"),
        (
            {"result": -5, "errno": "EIO", "firmware": 2},
            "<#0 KVM_SEV_ES_INIT (vm) = -5 EIO, firmware status 0x02 INVALID_GUEST_STATE>",
        ),
        (
            {"result": -4, "errno": "EINTR", "exit_reason": 10, "kicked": True},
            "<#0 KVM_SEV_ES_INIT (vm) = -4 EINTR, exit reason 10, kicked>",
        ),
    ],
)
def test_an_answer_prints_what_matters(answer: dict[str, Any], text: str) -> None:
    """Step, result, errno by name, and the firmware's word."""
    assert repr(Answers([sev(ES)], [answer])[0]) == text


@pytest.mark.parametrize("path", INIT_PATHS, ids=lambda path: path.name)
def test_the_agent_takes_every_step(path: InitPath) -> None:
    """What the constructors make is what the agent's check lets through."""
    steps = [
        *path.launched(),
        *calls.device_attribute(spec.KVM_X86_GRP_SEV, 0, "attribute"),
        calls.ioctl(spec.KVM_SET_REGS, "vcpu", {"rip": 0xFFF0}),
        calls.ioctl(0xAEFF, "vm", b"\0" * 8),
        calls.structure(spec.KVM_GET_REGS),
        calls.msrs(spec.KVM_GET_MSRS, 0x277),
        calls.run(immediate_exit=True),
        calls.peek("attribute", 8),
        calls.platform_status(),
        calls.asids_in_use(),
        *(calls.close(name) for name in ("vcpu", "vm", "sev", "kvm")),
    ]
    wire = [{**step.wire, "needed": step.needed} for step in steps]
    assert program.check(wire) == wire


def test_needed_goes_all_the_way_down() -> None:
    """Groups are opened, and every step of them becomes one that must succeed."""
    steps = needed(open_kvm(), [create_vm(0), (create_vcpu(0),)])
    assert [step.label for step in steps if step.needed] == [
        "open /dev/kvm",
        "KVM_CREATE_VM (kvm)",
        "KVM_CREATE_VCPU (vm)",
    ]


# Both ends


@pytest.fixture(scope="module", params=sorted(PROFILES))
def host(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A model host of each kernel."""
    with ModelHost.start(request.param) as model, Target(entry_of(model)) as connected:
        yield connected


@pytest.fixture
def kvm(host: Target) -> Kvm:
    """Direct calls on it."""
    return Kvm(host)


def test_a_refused_ioctl_is_an_answer(kvm: Kvm) -> None:
    """The example of the fixture's documentation."""
    vm = kvm(open_kvm(), create_vm(0), create_vcpu(0), sev(ES))
    assert vm[-1].errno == "EINVAL"
    assert repr(vm[-1]) == "<#3 KVM_SEV_ES_INIT (vm) = -22 EINVAL, firmware not called>"


def test_a_launch_by_hand(kvm: Kvm) -> None:
    """From the init command to LAUNCH_FINISH; the measurement is in memory; a guest without RAM faults."""
    vm = kvm(ES_INIT.launched(), calls.peek("measurement", 48), calls.run(limit_s=HANGS_S))
    assert len(set(vm[-2].out)) > 16
    assert (vm[-1].exit_reason, vm[-1].kicked) == (spec.KVM_EXIT_SHUTDOWN, False)


def test_immediate_exit(kvm: Kvm) -> None:
    """KVM_RUN returns before it enters the guest."""
    answer = kvm(ES_INIT.launched(), calls.run(immediate_exit=True))[-1]
    assert (answer.errno, answer.kicked) == ("EINTR", False)


def test_guest_memory(kvm: Kvm) -> None:
    """A slot over named memory, which LAUNCH_UPDATE_DATA encrypts in place."""
    plain = b"plain text......" * 256
    slot = {"memory_size": 4096, "userspace_addr": At("page")}
    vm = kvm(
        ES_INIT.started(),
        calls.memory("page", content=plain),
        calls.ioctl(spec.KVM_SET_USER_MEMORY_REGION, "vm", slot),
        sev(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, uaddr=At("page"), len=4096),
        calls.peek("page", 4096),
    )
    assert [answer.errno for answer in vm] == [None] * len(vm)
    assert vm[-1].out != plain


def test_counts(kvm: Kvm) -> None:
    """A guest holds an ASID and a context while it is there, and nothing when its descriptors are closed."""
    count = (calls.asids_in_use(), calls.platform_status("witness"))
    guest, ends = ES_INIT.started(), [calls.close(name) for name in ("vcpu", "vm")]
    vm = kvm(calls.open_sev("witness"), count, guest, count, ends)
    asids = [answer.units("sev_es") for answer in vm if answer.label == "misc.current"]
    status = [answer for answer in vm if answer.label.startswith("SEV_PLATFORM")]
    guests = [answer.decode(SEV_USER_DATA_STATUS)["guest_count"] for answer in status]
    assert asids == [0, 1]
    assert guests == [0, 1]


def test_the_firmware_s_refusal(kvm: Kvm) -> None:
    """EIO, with the firmware's status beside it."""
    answer = kvm(ES_INIT.started(), sev(SevCmd.KVM_SEV_LAUNCH_FINISH))[-1]
    assert (answer.errno, answer.firmware) == ("EIO", FirmwareStatus.INVALID_GUEST_STATE)


def test_a_missing_init_path_is_a_skip(kvm: Kvm, host: Target) -> None:
    """The skip names the capability that is missing."""
    if host.facts.vm_types:
        kvm.require(INIT2)
    else:
        with pytest.raises(Unsupported, match="KVM_CAP_VM_TYPES has no SEV-ES VM"):
            kvm.require(INIT2)


def test_transcripts_are_kept(host: Target, tmp_path: Path) -> None:
    """Each program of a test is a file, called after the test, with its steps and their answers."""
    told: list[Record] = []
    kvm = Kvm(host, "test_a[es_init-0x1]", Archive(tmp_path, "model"), told.append)
    kvm(open_kvm())
    kvm(open_kvm(), create_vm(0))
    assert [record["path"] for record in told] == [
        "model/calls/001-test_a-es_init-0x1.json",
        "model/calls/002-test_a-es_init-0x1.json",
    ]
    written = json.loads((tmp_path / told[1]["path"]).read_text())
    assert written["transcript"][0] == "#0 open /dev/kvm = 0"
    assert [len(written["program"]), len(written["answers"])] == [2, 2]


def test_a_bad_program_is_no_verdict(host: Target) -> None:
    """The agent refuses it, and that is an error of the rig."""
    with pytest.raises(AgentRemoteError, match=r"ValueError: step #0 .*no such descriptor"):
        Kvm(host)(calls.close("vm"))


def test_a_device_that_does_not_open_is_no_verdict(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open that is refused is an error of the rig, which names the device."""
    answers = {"answers": [{"result": -13, "errno": "EACCES"}, {"not_run": 0}]}
    assert target.facts.vmm.line  # asked before: nothing else is to be told by what stands in
    monkeypatch.setattr(target.client.ahead, "call", lambda *_: answers)
    with pytest.raises(HostError, match="open /dev/kvm: EACCES; see --sev-check"):
        Kvm(target)(open_kvm(), create_vm(0))


def test_the_example_is_true() -> None:
    """What the module's documentation shows."""
    assert doctest.testmod(calls).failed == 0
