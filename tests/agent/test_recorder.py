# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder's parts that need no tracee: filter, descriptor tracking, rules."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

import pytest

from pytest_seves.agent import bpf, capture, sabotage
from pytest_seves.agent.capture import Call, Memory
from pytest_seves.agent.descriptors import Descriptors
from pytest_seves.spec import kvm, sev

IOCTL = 16
X86_64 = 0xC000003E
I386 = 0x40000003


def verdict(
    code: list[bpf.Instruction], request: int, arg: int = 0, number: int = IOCTL, arch: int = X86_64
) -> int:
    """Run a filter as the kernel would (classic BPF, the three instructions that are used)."""
    data = struct.pack("<iIQ6Q", number, arch, 0, 3, request, arg, 0, 0, 0)
    position = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x15:
            position += if_true if accumulator == value else if_false
        else:
            assert operation == 0x06
            return value


FILTER = bpf.program(capture.RECORDED, capture.CAPABILITIES)


@pytest.mark.parametrize("request_number", sorted(capture.RECORDED - {kvm.KVM_CHECK_EXTENSION}), ids=hex)
def test_a_recorded_request_stops(request_number: int) -> None:
    """Each recorded request stops, sign-extended or not."""
    assert verdict(FILTER, request_number) == bpf.TRACE
    assert verdict(FILTER, request_number | 0xFFFFFFFF00000000) == bpf.TRACE


@pytest.mark.parametrize(
    ("request_number", "number", "arch"),
    [
        pytest.param(kvm.KVM_RUN, IOCTL, X86_64, id="KVM_RUN"),
        pytest.param(kvm.KVM_CREATE_VM, 1, X86_64, id="write(2)"),
        pytest.param(kvm.KVM_CREATE_VM, IOCTL, I386, id="i386"),
        pytest.param(0x5401, IOCTL, X86_64, id="TCGETS"),
    ],
)
def test_everything_else_runs_at_full_speed(request_number: int, number: int, arch: int) -> None:
    """No stop for KVM_RUN, other system calls, other architectures and other requests."""
    assert verdict(FILTER, request_number, number=number, arch=arch) == bpf.ALLOW


def test_only_capabilities_of_interest_stop() -> None:
    """KVM_CHECK_EXTENSION stops for the capabilities that are recorded."""
    assert verdict(FILTER, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_X86_SMM) == bpf.TRACE
    assert verdict(FILTER, kvm.KVM_CHECK_EXTENSION, 0xFFFF) == bpf.ALLOW


def test_a_filter_for_every_capability() -> None:
    """A rule about KVM_CHECK_EXTENSION needs them all."""
    code = bpf.program(capture.RECORDED, None)
    assert verdict(code, kvm.KVM_CHECK_EXTENSION, 0xFFFF) == bpf.TRACE


def test_a_filter_of_a_thousand_requests_has_no_long_jump() -> None:
    """Jump offsets are bytes; the number of requests is not limited by them."""
    code = bpf.program(range(0x1000, 0x1400), None)
    assert verdict(code, 0x13FF) == bpf.TRACE
    assert all(instruction[1] < 256 and instruction[2] < 256 for instruction in code)


def descriptors(**links: str) -> Descriptors:
    """A table of process 1 in which descriptor `fdN` is linked to a name."""
    return Descriptors(1, lambda pid, fd: links.get(f"fd{fd}"))


def test_a_closed_descriptor_is_said_to_be_closed() -> None:
    """A request on a number that is not open is still an event."""
    assert descriptors().at(9, kvm.KVM_SET_REGS).kind == "closed"


def test_kinds_come_from_requests_not_names() -> None:
    """A memfd that answers as KVM is KVM."""
    table = descriptors(fd3="/memfd:a (deleted)", fd4="/memfd:b (deleted)", fd5="/memfd:c (deleted)")
    assert table.at(3, kvm.KVM_CREATE_VM).kind == "kvm"
    table.created_vm(4)
    table.created_vcpu(4, 5, 7)
    assert (table.at(4, kvm.KVM_CREATE_VCPU).kind, table.at(5, kvm.KVM_SET_REGS).kind) == ("vm:4", "vcpu:7")
    assert table.at(5, kvm.KVM_SET_REGS).vm == 4
    assert table.vcpu(4, 7) == 5


def test_a_reused_number_is_what_it_was_reused_for() -> None:
    """close(2) is not watched: the next request shows what the number is now."""
    table = descriptors(fd4="/dev/sev")
    table.created_vm(4)
    assert table.at(4, sev.SEV_ISSUE_CMD).kind == "sev"
    table.created_vcpu(9, 4, 0)
    assert table.at(4, kvm.KVM_SET_REGS).kind == "vcpu:0"


def test_a_fork_inherits_and_then_goes_its_own_way() -> None:
    """What the child opens later is not the parent's."""
    parent = descriptors(fd6="/tmp/x")
    parent.created_vm(4)
    child = parent.forked(2)
    child.created_vm(6)
    assert child.at(4, kvm.KVM_CREATE_VCPU).kind == "vm:4"
    assert parent.at(6, kvm.KVM_CREATE_VCPU).kind == "/tmp/x"


def test_an_exec_keeps_what_stays_open() -> None:
    """Close-on-exec descriptors are forgotten."""
    table = descriptors(fd4="anything")
    table.created_vm(4)
    table.created_vm(5)
    table.executed()
    assert table.at(4, kvm.KVM_CREATE_VCPU).kind == "vm:4"
    assert table.at(5, kvm.KVM_CREATE_VCPU).kind == "closed"


OP = kvm.KVM_MEMORY_ENCRYPT_OP
DROP = {"name": "r", "request": OP, "action": "drop"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name"),
        ({"action": "explode"}, "wanted one of drop, fail"),
        ({"action": "fail"}, "missing \\['errno'\\]"),
        ({"skipp": 1}, "unknown \\['skipp'\\]"),
        ({"request": None}, "request"),
        ({"request": "KVM_RUN"}, "request"),
        ({"limit": -1}, "limit"),
        ({"skip": True}, "skip"),
        ({"after": "nobody"}, "wanted the name of another rule"),
        ({"after": "r"}, "wanted the name of another rule"),
        ({"sev": 1, "request": kvm.KVM_RUN}, "KVM_MEMORY_ENCRYPT_OP"),
        ({"issue": 1}, "SEV_ISSUE_CMD"),
        ({"action": "rewrite", "where": "nowhere", "value": 0}, "where"),
        ({"action": "rewrite", "where": "arg", "value": 256, "size": 1}, "at most 1 bytes"),
        ({"action": "rewrite", "where": "arg", "value": 0, "size": 3}, "1, 2, 4 or 8"),
        ({"action": "rewrite", "where": "data", "value": 0, "request": kvm.KVM_SET_REGS}, "no data pointer"),
        ({"action": "inject-after", "inject": {"sev": 1, "request": 2}}, "inject"),
        ({"action": "inject-after", "inject": {"request": 2, "in": "zz"}}, "hexadecimal"),
        ({"action": "defer", "until": {"request": 2}}, "until"),
        ({"action": "retry-as", "retry": 0, "request": kvm.KVM_SET_REGS}, "KVM_MEMORY_ENCRYPT_OP"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    """Every mistake is a ValueError that names the rule's part."""
    with pytest.raises(ValueError, match=message):
        sabotage.load([{**DROP, **change}])


def test_a_name_is_used_once() -> None:
    """`after` must be able to tell rules apart."""
    with pytest.raises(ValueError, match="twice"):
        sabotage.load([DROP, DROP])


def call(request: int = OP, sev_id: int | None = 1) -> Call:
    """A call of this process, with no memory behind its argument."""
    made = Call(0, os.getpid(), os.getpid(), 3, request, 0, Memory())
    made.plan = capture.plan(request)
    made.sev_id = sev_id
    made.descriptor = descriptors().at(3, request)
    return made


def taken(rules: list[dict[str, Any]], calls: list[Call]) -> list[list[str]]:
    """The names of the rules that fired on each call."""
    saboteur = sabotage.Saboteur(sabotage.load(rules))
    for made in calls:
        saboteur.enter(made)
    return [made.rules or [] for made in calls]


def test_skip_and_limit_choose_among_matching_calls() -> None:
    """skip passes the first ones over, limit ends it."""
    rules = [{**DROP, "skip": 1, "limit": 1}]
    assert taken(rules, [call(), call(), call()]) == [[], ["r"], []]


def test_after_waits_for_the_other_rule() -> None:
    """A rule with `after` sleeps until that rule has fired."""
    rules = [{**DROP, "sev": 2}, {**DROP, "name": "s", "sev": 1, "after": "r"}]
    assert taken(rules, [call(), call(sev_id=2), call()]) == [[], ["r"], ["s"]]


def test_an_interrupted_call_does_not_count() -> None:
    """The kernel restarts it, and the rule takes it again."""
    saboteur = sabotage.Saboteur(sabotage.load([{**DROP, "limit": 1}]))
    first = call()
    changes = saboteur.enter(first)
    assert changes is not None
    saboteur.restarted(first, changes)
    again = call()
    saboteur.enter(again)
    assert again.rules == ["r"]


def test_read_sizes_of_the_msr_requests_follow_their_count() -> None:
    """kvm_msrs ends in an array; its ioctl number has the head's size only."""
    raw = struct.pack("<II", 2, 0) + bytes(32)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    made = call(kvm.KVM_SET_MSRS, None)
    made.arg = ctypes.addressof(buffer)
    made.enter()
    assert made.raw_in == raw
