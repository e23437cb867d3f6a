# SPDX-License-Identifier: GPL-2.0-or-later
"""Observing VMMs that do not behave: each is evidence, none is an error of ours. Real SSH, real recorder."""

from __future__ import annotations

import os
import unittest
import zlib
from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import EvidenceError, Undecided
from pytest_seves.evidence.launch import Launch
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.observe import observe

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

MIB = 1 << 20
QEMU = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=kvm"]
GREET = 'import os, sys, time; os.write(3, b\'{"QMP": {"version": {}, "capabilities": []}}\\n\'); '


@pytest.fixture
def nap(request: pytest.FixtureRequest) -> str:
    """A command that takes long, and is nobody else's."""
    return f"sleep {100_000 + os.getpid()}.{zlib.crc32(request.node.name.encode())}"


def watch(target: Target, *argv: str, timeout_s: float = 20.0) -> Launch:
    """Observe one command on the model."""
    return observe(target.client, argv, host="model", timeout_s=timeout_s)


def test_a_vmm_that_exits_at_once(target: Target) -> None:
    """The exit status and what it said are the evidence; a requirement about the launch is undecided."""
    launch = watch(target, "sh", "-c", "echo no such machine >&2; exit 3")
    assert (launch.exit.status, launch.exit.signal) == (3, None)
    assert launch.stderr.text == "no such machine\n"
    assert launch.phase == "waiting for the QMP greeting"
    with pytest.raises(Undecided, match="exit status 3 while waiting for the QMP greeting; stderr: no such"):
        launch.reached(Stage.VM_CREATED)


def test_a_vmm_that_cannot_be_started(target: Target) -> None:
    """A program that is not there is an error of the rig that names it, and no verdict."""
    with pytest.raises(EvidenceError, match=r"/nonexistent/vmm was not recorded to its end: .*No such file"):
        watch(target, "/nonexistent/vmm")


def test_a_vmm_that_crashes(target: Target) -> None:
    """A signal is reported as a signal."""
    launch = watch(target, "sh", "-c", "kill -SEGV $$")
    assert (launch.exit.status, launch.exit.signal) == (None, 11)
    assert "signal 11 SIGSEGV" in launch.account()


def still_there(target: Target, command: str) -> bool:
    """Whether the host has a process with this command line."""
    asked = {"argv": ["pgrep", "--full", "--exact", command], "timeout_s": 5, "limit": 4096}
    return int(target.client.call("exec", asked)["status"]) == 0


def test_a_vmm_that_hangs(target: Target, nap: str) -> None:
    """A VMM that does nothing is killed at its deadline, on the host, with all that it started."""
    launch = watch(target, "sh", "-c", f"{nap} & {nap}", timeout_s=2.0)
    assert launch.exit.killed_at_deadline
    assert launch.exit.signal == 9
    assert not still_there(target, nap)


def test_a_vmm_that_stays_in_the_background(target: Target, nap: str) -> None:
    """A VMM that has left its first process is ended at the deadline too, and its recording has its end."""
    launch = watch(target, "sh", "-c", f"setsid {nap} & exit 0", timeout_s=2.0)
    assert launch.exit.status == 0
    assert launch.exit.killed_at_deadline
    assert not still_there(target, nap)


def test_a_vmm_that_floods(target: Target) -> None:
    """1 MiB of each stream is kept, beginning and end; the rest is counted."""
    flood = (
        "import os; [os.write(f, b'x' * 65536) for _ in range(80) for f in (1, 2, 4)]; os.write(4, b'end')"
    )
    launch = watch(target, "python3", "-c", flood)
    for stream in (launch.stdout, launch.stderr, launch.console):
        assert len(stream.head) + len(stream.tail) == MIB
    assert launch.console.size == 80 * 65536 + 3
    assert launch.console.tail.endswith(b"end")


@pytest.mark.parametrize(
    "nonsense", ["os.write(3, b'hello there\\n')", "os.write(3, b'[' * (10 << 20))", "os.write(3, b'{}\\n')"]
)
def test_a_vmm_that_talks_nonsense(target: Target, nonsense: str) -> None:
    """A peer that speaks no QMP is no error of ours."""
    launch = watch(target, "python3", "-c", f"import os; {nonsense}; os.close(3)", timeout_s=10.0)
    assert launch.phase == "waiting for the QMP greeting"
    assert launch.timeline.stage == Stage.NOTHING


def test_a_vmm_that_closes_qmp(target: Target) -> None:
    """A peer that greets and then hangs up is no error of ours."""
    launch = watch(
        target, "python3", "-c", GREET + "sys.stdin.close(); os.close(3); time.sleep(0.1)", timeout_s=10.0
    )
    assert launch.qmp.greeting is not None
    assert launch.phase


def test_a_guest_is_launched_once_for_all_who_ask(target: Target) -> None:
    """The same guest asked for twice is one launch, with one evidence."""
    launcher = Launcher(target)
    assert launcher(vcpus=2) is launcher(vcpus=2)
    assert launcher(vcpus=2) is not launcher(vcpus=2, paused=True)
    assert (launcher.launched, launcher.served) == (2, 4)


def test_a_paused_guest_is_asked_before_and_after(target: Target) -> None:
    """A guest started paused is asked, continued, asked again and quit; the timeline says when it ran."""
    launch = Launcher(target)(paused=True)
    assert [reply["status"] for reply in launch.qmp.replies("query-status")] == ["prelaunch", "running"]
    (resumed,) = launch.qmp.all("cont")
    assert launch.timeline.runs[0].time_ns > resumed.sent_ns
    assert (launch.exit.status, launch.phase) == (0, "")


def test_nothing_is_left_behind(target: Target) -> None:
    """After a launch the host has its ASID back and no VMM is left."""
    Launcher(target)(vcpus=3)
    raw = target.client.call("facts", {"vmm": "true", "firmware": "/dev/null"}, timeout_s=30)
    assert raw["misc"]["current"]["sev_es"] == 0
    assert raw["platform_status"]["hex"].endswith("00000000")


def test_the_recording_survives_daemonize_and_sandbox(target: Target) -> None:
    """A VMM that forks into the background, and one in its own sandbox, are recorded to the end."""
    plain = Launcher(target)(policy=None, extra=["-sandbox", "on"])
    assert plain.timeline.stage == Stage.RUNNING
    forked = Launcher(target)(policy=None, extra=["-daemonize"])
    assert forked.timeline.stage == Stage.RUNNING


def test_an_init_path_that_the_host_lacks(target: Target) -> None:
    """A kernel without KVM_SEV_INIT2 is a missing capability, which test runners skip."""
    with pytest.raises(unittest.SkipTest, match="this kernel has no KVM_SEV_INIT2"):
        Launcher(target)(init_path="INIT2")
