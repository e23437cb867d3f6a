# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at a host, compared: which fault is seen, and what is none. What makes them is in tests/faults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_seves.errors import (
    ClockJumped,
    DiskFull,
    FirmwareStateLost,
    HostFault,
    HostRebooted,
    KernelOops,
    NoFreeAsids,
)
from pytest_seves.host.health import describe, faults, unread
from pytest_seves.host.target import Target
from pytest_seves.model.host import ModelHost

Look = dict[str, Any]
Change = Callable[[Look], object]


@pytest.fixture(scope="module")
def first(target: Target) -> Look:
    """A real look."""
    return target.client.call("health")


def found(first: Look, *changes: Change) -> list[HostFault]:
    """Faults of a second look that differs in something."""
    now = copy.deepcopy(first)
    for change in changes:
        change(now)
    return list(faults("lab1", first, first, now))


def test_a_look(first: Look) -> None:
    """Everything is told on the model: boot, clocks, space, ASIDs, firmware, and where the log goes on."""
    assert len(first["boot_id"]) == 36
    assert first["realtime_ns"] > 1 << 60
    assert all(space["free"] > 0 for space in first["space"].values())
    assert first["misc"]["current"]["sev_es"] == 0
    assert len(bytes.fromhex(first["platform_status"]["hex"])) == 12
    assert first["log"] == {"next": 1, "lines": [], "dropped": 0, "alarms": []}
    assert found(first) == []


def advance(seconds: float) -> Change:
    """The wall clock alone goes on."""
    return lambda look: look.update(realtime_ns=look["realtime_ns"] + int(seconds * 1e9))


def status(**fields: int) -> Change:
    """Another firmware status, by the offset of a byte."""

    def change(look: Look) -> None:
        raw = bytearray.fromhex(look["platform_status"]["hex"])
        for name, value in fields.items():
            raw[{"api_minor": 1, "state": 2, "build": 7}[name]] = value
        look["platform_status"]["hex"] = raw.hex()

    return change


def space(**values: int) -> Change:
    """Another amount of space in one directory."""
    return lambda look: next(iter(look["space"].values())).update(values)


def in_use(count: int) -> Change:
    """Another number of ASIDs in use."""
    return lambda look: look["misc"]["current"].update(sev_es=count)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda look: look.update(boot_id="x"), HostRebooted, "rebooted: boot id x, was "),
        (lambda look: look["log"].update(alarms=["BUG: a", "b"]), KernelOops, "'BUG: a' (and 1 more)"),
        (status(state=0), FirmwareStateLost, "platform state UNINIT, was INIT"),
        (status(build=25), FirmwareStateLost, "build 25, was API 1.55 build 24"),
        (status(api_minor=56), FirmwareStateLost, "API 1.56"),
        (lambda look: look.update(platform_status={"errno": "EIO"}), FirmwareStateLost, "fails: EIO"),
        (space(free=4096), DiskFull, "disk full: /"),
        (space(files=0), DiskFull, "and 0 files are free"),
        (in_use(99), NoFreeAsids, "no free SEV-ES ASIDs: 99 of 99"),
        (advance(-3), ClockJumped, "clock jump: its wall clock moved by -3.0 s"),
        (advance(3600), ClockJumped, "+3600.0 s"),
    ],
)
def test_a_fault(first: Look, change: Change, kind: type[HostFault], text: str) -> None:
    """Each one is recognised alone, and says what was seen."""
    (fault,) = found(first, change)
    assert type(fault) is kind
    assert text in describe(fault)
    assert str(fault).startswith("lab1: ")


@pytest.mark.parametrize(
    "change",
    [
        status(state=2),  # guests run
        in_use(98),
        advance(1.5),
        lambda look: look.update(misc={"capacity": None, "current": None}),
        lambda look: look["misc"].update(current=None),
        lambda look: look.update(boot_id={"errno": "EACCES", "error": "Permission denied"}),
        lambda look: look.update(misc={"errno": "EACCES", "error": "Permission denied"}),
        lambda look: look["space"].update({"/nowhere": {"errno": "ENOENT", "error": "No such file"}}),
    ],
)
def test_no_fault(first: Look, change: Change) -> None:
    """What is in order, or not told, is none."""
    assert found(first, change) == []


def test_a_reboot_explains_the_rest(first: Look) -> None:
    """A host that was rebooted has another clock and firmware state as well: that says nothing more."""
    faults = found(first, lambda look: look.update(boot_id="x"), status(state=0), advance(99))
    assert [type(fault) for fault in faults] == [HostRebooted]


def test_a_log_that_cannot_be_read(first: Look) -> None:
    """It is no fault, and told."""
    denied = {"errno": "EPERM", "error": "Operation not permitted"}
    assert found(first, lambda look: look.update(log=denied)) == []
    assert unread({**first, "log": denied}) == "the kernel's log was not read: EPERM"
    assert unread(first) is None


@pytest.fixture
def log(model: ModelHost) -> Iterator[Callable[[str], int]]:
    """Write into the kernel's log of the model."""
    path = model.directory / "kmsg"
    before = path.read_text()
    yield lambda text: path.write_text(before + text)
    path.write_text(before)


def test_the_kernels_log(target: Target, log: Callable[[str], int]) -> None:
    """Only records since the last look, without their properties, the alarming ones apart, all bounded."""
    lines = ["kvm: hello", "BUG: soft lockup - CPU#3", *["x" * 999] * 200]
    log("".join(f"4,{n},9,-;{line}\n SUBSYSTEM=cpu\n" for n, line in enumerate(lines, 1)))
    told = target.client.call("health", {"since": 1})["log"]
    assert told["next"] == 203
    assert told["alarms"] == ["BUG: soft lockup - CPU#3"]
    assert (len(told["lines"]), told["dropped"], len(told["lines"][-1])) == (100, 102, 500)
    assert target.client.call("health", {"since": 203})["log"]["lines"] == []


@pytest.mark.parametrize(
    ("line", "alarming"),
    [
        ("BUG: kernel NULL pointer dereference, address: 0000000000000008", True),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 26s!", True),
        ("kernel BUG at arch/x86/kvm/svm/sev.c:101!", True),
        ("Oops: 0000 [#1] PREEMPT SMP NOPTI", True),
        ("general protection fault, probably for non-canonical address 0xdead: 0000 [#1]", True),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", True),
        ("rcu: INFO: rcu_sched self-detected stall on CPU", True),
        ("kvm_amd: SEV: VMSA error -5", True),
        ("traps: qemu[7] general protection fault ip:5581 sp:7ffd error:0 in qemu", False),
        ("qemu-system-x86[7]: segfault at 0 ip 0 sp 0 error 4 in qemu", False),
        ("kvm_amd: SEV-ES guest requested termination: 0x0:0x0", False),
        ("EXT4-fs error (device sda1)", False),
    ],
)
def test_what_is_alarming(target: Target, log: Callable[[str], int], line: str, alarming: bool) -> None:
    """The kernel's own faults are, a program's are not."""
    log(f"4,1,9,-;{line}\n")
    assert bool(target.client.call("health", {"since": 1})["log"]["alarms"]) is alarming
