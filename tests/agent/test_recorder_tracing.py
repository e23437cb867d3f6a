# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder with real tracees: small programs everywhere, KVM and QEMU where /dev/kvm can be used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from pytest_seves.spec import kvm, sev
from pytest_seves.spec.sev import SevCmd

IOCTLS = str(Path(__file__).parent / "programs" / "ioctls.py")
LISTENER = str(Path(__file__).parent / "programs" / "listener.py")
OP = kvm.KVM_MEMORY_ENCRYPT_OP
ENOTTY = -25
NULL = {"open": "/dev/null", "as": "null"}
LIMIT_S = 60
#: The interpreter of the recorder; a host's may be as old as 3.9.
PYTHON = os.environ.get("SEVES_AGENT_PYTHON", sys.executable)
BECOMES = {
    "fork": "import os\npid = os.fork()\nact()\nif pid: os.waitpid(pid, 0)",
    "thread": "import threading\nt = threading.Thread(target=act); t.start(); t.join(); act()",
    "vfork-exec": "import subprocess, sys\nact()\n"
    "subprocess.run([sys.executable, '-c', ACT + 'act()'], check=True)",
    "exec": "import os, sys\nact()\nos.execv(sys.executable, [sys.executable, '-c', ACT + 'act()'])",
    "exec-of-a-thread": "import os, sys, threading\nact()\n"
    "arguments = [sys.executable, '-c', ACT + 'act()']\n"
    "threading.Thread(target=os.execv, args=(sys.executable, arguments)).start()\n"
    "import time; time.sleep(60)",
}
ACT = f"""
import ctypes
def act():
    raw = ctypes.create_string_buffer(bytes.fromhex("{"11" * 16}"), 16)
    fd = open("/dev/null")
    ctypes.CDLL(None).ioctl(fd.fileno(), ctypes.c_ulong({kvm.KVM_MEMORY_ENCRYPT_REG_REGION}), raw)
"""


@dataclass(frozen=True)
class Recording:
    """What came of one run under the recorder."""

    status: int
    stdout: str
    stderr: str
    milestones: list[dict[str, Any]]
    header: dict[str, Any]
    events: list[dict[str, Any]]
    end: dict[str, Any]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What the program itself saw (programs/ioctls.py)."""
        results: list[dict[str, Any]] = json.loads(self.stdout)
        return results

    def of(self, request: int) -> list[dict[str, Any]]:
        """The events of one request."""
        return [event for event in self.events if event["req"] == request]


class Observer:
    """Runs programs under the recorder in one mode.

    :ivar status: the milestones as they come.
    """

    status: IO[str]

    def __init__(self, mode: str, directory: Path) -> None:
        self.mode = mode
        self.out = directory / "timeline.jsonl"

    def start(
        self,
        *argv: str,
        rules: list[dict[str, Any]] | None = None,
        under: tuple[str, ...] = (),
        out: str = "",
    ) -> subprocess.Popen[str]:
        """Start the recorder, itself started by `under` if given."""
        read, write = os.pipe()
        os.set_inheritable(write, True)
        self.status = open(read, encoding="utf-8")  # noqa: SIM115 -- closed with the test's process
        options = ["--mode", self.mode, "--out", out or str(self.out), "--status", f"/dev/fd/{write}"]
        options += ["--rules", json.dumps(rules or [])]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*under, PYTHON, "-m", "pytest_seves.agent.recorder", *options, "--", *argv],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            close_fds=False,
        )
        os.close(write)
        return process

    def run(self, *argv: str, rules: list[dict[str, Any]] | None = None, **more: Any) -> Recording:
        """Run to the end."""
        return self.finish(self.start(*argv, rules=rules, **more), [])

    def finish(
        self, process: subprocess.Popen[str], before: list[dict[str, Any]], stdin: str | None = None
    ) -> Recording:
        """Wait, and parse what the recorder wrote, after the milestones that were read before."""
        try:
            stdout, stderr = process.communicate(stdin, timeout=LIMIT_S)
        finally:
            process.kill()
        with self.status:
            milestones = [*before, *map(json.loads, self.status)]
        lines = [json.loads(line) for line in self.out.read_text().splitlines()]
        header, end = (lines[0], lines[-1]) if lines else ({}, {})
        return Recording(process.returncode, stdout, stderr, milestones, header, lines[1:-1], end)

    def script(self, *steps: dict[str, Any], **more: Any) -> Recording:
        """Run programs/ioctls.py."""
        return self.run(sys.executable, IOCTLS, json.dumps(steps), **more)

    def python(self, program: str) -> Recording:
        """Run a program that may use ACT."""
        return self.run(sys.executable, "-c", f"ACT = {ACT!r}\n{ACT}\n{program}")


@pytest.fixture(params=["trace", "stop"])
def observer(request: pytest.FixtureRequest, tmp_path: Path) -> Observer:
    """A recorder in each of the two modes."""
    return Observer(request.param, tmp_path)


def sev_rule(command: SevCmd, action: str, **params: Any) -> dict[str, Any]:
    """A rule about one SEV command."""
    return {"name": "rule", "request": OP, "sev": int(command), "action": action, **params}


def sev_step(command: SevCmd, **more: Any) -> dict[str, Any]:
    """One SEV command on /dev/null, which refuses everything."""
    return {"on": "null", "req": OP, "sev": int(command), **more}


# What can go wrong


def test_a_program_that_does_not_exist(observer: Observer) -> None:
    """127, and the reason in words, as a milestone and in the timeline."""
    recording = observer.run("/nonexistent/vmm")
    assert recording.status == 127
    assert "cannot execute '/nonexistent/vmm'" in recording.milestones[-1]["error"]
    assert recording.end["error"] == recording.milestones[-1]["error"]


def test_a_program_that_never_uses_kvm(observer: Observer) -> None:
    """Zero events are suspicious and said to be so."""
    recording = observer.run("true")
    assert recording.status == 0
    assert "no KVM or SEV ioctl was seen" in recording.end["warning"]


def test_a_rule_that_makes_no_sense(observer: Observer) -> None:
    """The program is not started."""
    recording = observer.run("true", rules=[{"name": "r", "request": 1, "action": "explode"}])
    assert recording.status == 125
    assert "explode" in recording.milestones[0]["error"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT], ids=lambda n: n.name)
def test_a_crash_is_reported_as_a_crash(observer: Observer, number: signal.Signals) -> None:
    """The signal passes through and is the end that is told."""
    recording = observer.python(
        "import os, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"act(); os.kill(os.getpid(), {number})"
    )
    assert recording.status == 128 + number
    assert recording.end["exit"] == {"signal": number, "core": False}
    assert recording.milestones[-1] == {"exit": recording.end["exit"]}
    assert len(recording.events) == 1


def test_nobody_reads_the_timeline(observer: Observer) -> None:
    """The reader vanished: the recorder ends, and the program with it."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    program = f"import sys\n{ACT}\nprint('ready', flush=True)\nsys.stdin.read(1)\nwhile True: act()"
    with observer.start(sys.executable, "-c", program, out=f"/dev/fd/{write}") as process, observer.status:
        os.close(write)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.close(read)
        process.communicate("x", timeout=LIMIT_S)
        assert process.returncode == 125


def test_a_killed_recorder_takes_the_program_with_it(observer: Observer) -> None:
    """PTRACE_O_EXITKILL: nothing is left behind, and what came before has been written."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    program = f"import time\n{ACT}\nact()\nprint('ready', flush=True)\ntime.sleep(3600)"
    with observer.start(sys.executable, "-c", program, out=f"/dev/fd/{write}") as process, observer.status:
        os.close(write)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with open(read, encoding="utf-8") as timeline:
            assert "format" in json.loads(timeline.readline())
            assert json.loads(timeline.readline())["in"] == "11" * 16
            process.kill()
            assert timeline.read() == ""
        assert process.stdout.read() == ""  # the last writer is gone


# Choice of the mode


@pytest.mark.parametrize(
    ("under", "mode", "ret"),
    [((), "trace", ENOTTY), ((sys.executable, LISTENER), "stop", 5)],
    ids=["alone", "below-a-listener"],
)
def test_auto_takes_the_mode_that_works(tmp_path: Path, under: tuple[str, ...], mode: str, ret: int) -> None:
    """A filter's stop never arrives below a user-notification listener: then every system call stops."""
    recording = Observer("auto", tmp_path).script(NULL, sev_step(SevCmd.KVM_SEV_ES_INIT), under=under)
    assert recording.status == 0, recording.stderr
    assert recording.header["mode"] == mode
    assert [event["ret"] for event in recording.events] == [ret]
    assert [result["ret"] for result in recording.results] == [ret]


def test_the_wrong_mode_says_that_it_saw_nothing(tmp_path: Path) -> None:
    """The self-check of "trace" below a listener names the cause."""
    under = (sys.executable, LISTENER)
    recording = Observer("trace", tmp_path).script(NULL, sev_step(SevCmd.KVM_SEV_ES_INIT), under=under)
    assert "user-notification listener" in recording.end["warning"]


# Processes and threads


@pytest.mark.parametrize("kind", BECOMES)
def test_everything_the_program_becomes_is_recorded(observer: Observer, kind: str) -> None:
    """Threads, children and what they execute: memory is read of the right process."""
    recording = observer.python(BECOMES[kind])
    assert recording.status == 0
    assert [event["in"] for event in recording.of(kvm.KVM_MEMORY_ENCRYPT_REG_REGION)] == ["11" * 16] * 2
    assert {event["ret"] for event in recording.events} == {ENOTTY}


def test_a_daemon_is_followed_to_its_end(observer: Observer) -> None:
    """The first process's status is the exit; the daemon's own end is there, too."""
    recording = observer.python(
        "import os, time\n"
        "r, w = os.pipe()\n"
        "if os.fork(): os.close(w); os.read(r, 1); os._exit(3)\n"
        "os.close(r); os.setsid(); os.write(w, b'x'); os.close(w)\n"
        "while os.getppid() == PARENT: pass\n".replace("PARENT", "os.getpid()")
        + "time.sleep(0.2); act(); os._exit(5)"
    )
    assert recording.status == 3
    assert recording.end["exit"] == {"status": 3}
    assert recording.end["last"]["status"] == 5
    assert {"detached": {"status": 3}} in recording.milestones


def test_a_kill_is_for_all_of_it(observer: Observer) -> None:
    """SIGKILL of the first process is the end of what it left in the background, and that is recorded."""
    recording = observer.python(
        "import os, signal, time\nact()\n"
        "if os.fork() == 0: time.sleep(3600)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert recording.end["exit"]["signal"] == signal.SIGKILL
    assert len(recording.events) == 1


def test_signals_arrive(observer: Observer) -> None:
    """Handlers run, stop and continue work, and the program goes on."""
    recording = observer.python(
        "import os, signal, subprocess\n"
        "seen = []\n"
        "signal.signal(signal.SIGUSR1, lambda n, f: seen.append(n))\n"
        "signal.signal(signal.SIGCONT, lambda n, f: seen.append(n))\n"
        "for _ in range(50): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "helper = subprocess.Popen(['sh', '-c', f'sleep 0.1; kill -CONT {os.getpid()}'])\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "helper.wait(); act(); print(len(seen))"
    )
    assert recording.status == 0
    assert recording.stdout.strip() == "51"
    assert len(recording.events) == 1


def test_sigterm_for_the_recorder_is_for_the_program(observer: Observer) -> None:
    """A polite end of the recorder is a polite end of the VMM."""
    program = f"import time\n{ACT}\nact()\nprint('ready', flush=True)\ntime.sleep(3600)"
    process = observer.start(sys.executable, "-c", program)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    recording = observer.finish(process, [])
    assert recording.end["exit"]["signal"] == signal.SIGTERM


def test_descriptors_the_program_gets(observer: Observer) -> None:
    """0, 1 and 2, and nothing of the recorder's."""
    recording = observer.python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    assert json.loads(recording.stdout)[:3] == [0, 1, 2]
    assert len(json.loads(recording.stdout)) == 4  # the listing's own


# Payloads


def test_payload_of_a_launch_command(observer: Observer) -> None:
    """Command, its structure and the memory it names, with its digest."""
    recording = observer.python(
        "import struct\n"
        "page = ctypes.create_string_buffer(b'\\x5a' * 8192, 8192)\n"
        "data = ctypes.create_string_buffer(struct.pack('<QII', ctypes.addressof(page), 8192, 0), 16)\n"
        "raw = ctypes.create_string_buffer(struct.pack('<IIQII', 3, 0, ctypes.addressof(data), 0, 9), 24)\n"
        f"ctypes.CDLL(None).ioctl(open('/dev/null').fileno(), ctypes.c_ulong({OP}), raw)"
    )
    (event,) = recording.events
    assert event["sev"]["id"] == SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA
    (memory,) = event["sev"]["mem"]
    assert (memory["len"], memory["sha256"]) == (8192, hashlib.sha256(b"\x5a" * 8192).hexdigest())
    assert "hex" not in memory
    assert event["out"] == "="


def test_memory_that_is_not_there(observer: Observer) -> None:
    """A wrong pointer of the VMM is the VMM's problem, and visible."""
    recording = observer.script(
        NULL, sev_step(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, data=struct.pack("<QII", 4096, 16, 0).hex())
    )
    (event,) = recording.events
    assert event["sev"]["mem"] == [{"addr": 4096, "len": 16, "fault": 0}]


def test_platform_status_is_read(observer: Observer) -> None:
    """SEV_ISSUE_CMD makes its descriptor /dev/sev, and its answer is in the event."""
    recording = observer.script(NULL, {"on": "null", "req": sev.SEV_ISSUE_CMD, "issue": 1, "data": "22" * 12})
    (event,) = recording.events
    assert (event["kind"], event["issue"]) == ("sev", {"cmd": 1, "out": "22" * 12})


# Sabotage


def test_drop(observer: Observer) -> None:
    """The kernel never sees it, and the program sees the given result."""
    recording = observer.script(
        NULL,
        sev_step(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA),
        rules=[sev_rule(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, "drop")],
    )
    (event,) = recording.events
    assert recording.results[0]["ret"] == 0
    assert (event["executed"], event["rules"], event["ret"]) == (False, ["rule"], 0)
    assert recording.end["rules"] == {"rule": 1}


def test_fail(observer: Observer) -> None:
    """Not executed; errno and the firmware's error are as given."""
    recording = observer.script(
        NULL,
        sev_step(SevCmd.KVM_SEV_LAUNCH_START),
        rules=[sev_rule(SevCmd.KVM_SEV_LAUNCH_START, "fail", errno=5, fw_error=3)],
    )
    assert recording.results[0]["ret"] == -5
    assert sev.KVM_SEV_CMD.decode(bytes.fromhex(recording.results[0]["hex"]))["error"] == 3
    assert (recording.events[0]["ret"], recording.events[0]["executed"]) == (-5, False)


def test_fail_of_a_platform_command(observer: Observer) -> None:
    """The same for sev_issue_cmd.error."""
    rule = {
        "name": "r",
        "request": sev.SEV_ISSUE_CMD,
        "issue": 1,
        "action": "fail",
        "errno": 5,
        "fw_error": 1,
    }
    recording = observer.script(NULL, {"on": "null", "req": sev.SEV_ISSUE_CMD, "issue": 1}, rules=[rule])
    assert sev.SEV_ISSUE_CMD_DATA.decode(bytes.fromhex(recording.results[0]["hex"]))["error"] == 1


def test_rewrite_of_the_command(observer: Observer) -> None:
    """The kernel sees another command; afterwards the program finds its own bytes."""
    step = sev_step(SevCmd.KVM_SEV_ES_INIT)
    rule = sev_rule(SevCmd.KVM_SEV_ES_INIT, "rewrite", where="arg", offset=0, size=4, value=0)
    recording = observer.script(NULL, step, rules=[rule])
    (event,) = recording.events
    assert event["sev"]["id"] == SevCmd.KVM_SEV_INIT
    assert event["in"][:8] == "00000000"
    assert recording.results[0]["hex"][:8] == "01000000"


def test_rewrite_of_bits_behind_the_data_pointer(observer: Observer) -> None:
    """Only the bits of the mask change."""
    step = sev_step(SevCmd.KVM_SEV_LAUNCH_START, data=struct.pack("<II32x", 0, 0x05).hex())
    rule = sev_rule(
        SevCmd.KVM_SEV_LAUNCH_START, "rewrite", where="data", offset=4, size=4, value=0x08, mask=0x0C
    )
    recording = observer.script(NULL, step, rules=[rule])
    assert recording.events[0]["sev"]["in"][8:16] == "09000000"
    assert recording.results[0]["data"][8:16] == "05000000"


def test_rewrite_of_the_argument_itself(observer: Observer) -> None:
    """args[2] of a request that takes a number."""
    rule = {
        "name": "r",
        "request": kvm.KVM_SET_BOOT_CPU_ID,
        "action": "rewrite",
        "where": "value",
        "value": 7,
    }
    recording = observer.script(NULL, {"on": "null", "req": kvm.KVM_SET_BOOT_CPU_ID, "arg": 1}, rules=[rule])
    assert recording.events[0]["arg"] == 7


def test_return_hides_the_kernels_result(observer: Observer) -> None:
    """The program sees 0, the event shows what the kernel said."""
    recording = observer.script(
        NULL,
        sev_step(SevCmd.KVM_SEV_LAUNCH_FINISH),
        rules=[sev_rule(SevCmd.KVM_SEV_LAUNCH_FINISH, "return", ret=0)],
    )
    assert recording.results[0]["ret"] == 0
    assert recording.events[0]["ret"] == ENOTTY
    assert {"finish": True} in recording.milestones


def test_retry_as(observer: Observer) -> None:
    """A quiet fallback: the second command's result is what the program sees, with its own bytes intact."""
    rules = [
        sev_rule(SevCmd.KVM_SEV_ES_INIT, "fail", errno=16),
        {**sev_rule(SevCmd.KVM_SEV_ES_INIT, "retry-as", retry=0), "name": "retry"},
    ]
    recording = observer.script(NULL, sev_step(SevCmd.KVM_SEV_ES_INIT), rules=rules)
    first, second = recording.events
    assert (first["ret"], first["rules"], second["injected"]) == (-16, ["rule", "retry"], True)
    assert second["sev"]["id"] == SevCmd.KVM_SEV_INIT
    assert recording.results[0]["ret"] == ENOTTY
    assert recording.results[0]["hex"][:8] == "01000000"


def test_inject_after(observer: Observer) -> None:
    """An extra command with the same descriptors, of which the program knows nothing."""
    rules = [
        sev_rule(SevCmd.KVM_SEV_ES_INIT, "drop"),
        {**sev_rule(SevCmd.KVM_SEV_ES_INIT, "inject-after", inject={"sev": 4}), "name": "extra"},
    ]
    recording = observer.script(NULL, sev_step(SevCmd.KVM_SEV_ES_INIT), rules=rules)
    assert recording.results[0]["ret"] == 0
    assert [event["sev"]["id"] for event in recording.events] == [1, 4]
    assert sev.KVM_SEV_CMD.decode(bytes.fromhex(recording.events[1]["in"]))["sev_fd"] == 77


def test_nothing_is_injected_after_a_failure(observer: Observer) -> None:
    """inject-after wants success."""
    rule = sev_rule(SevCmd.KVM_SEV_ES_INIT, "inject-after", inject={"sev": 4})
    recording = observer.script(NULL, sev_step(SevCmd.KVM_SEV_ES_INIT), rules=[rule])
    assert len(recording.events) == 1
    assert recording.end["rules"] == {"rule": 0}


def test_defer(observer: Observer) -> None:
    """Dropped now, issued with its own structure after the first success of the other command."""
    measure = SevCmd.KVM_SEV_LAUNCH_MEASURE
    rules = [
        sev_rule(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, "defer", until={"sev": int(measure)}),
        {**sev_rule(measure, "drop"), "name": "measured", "skip": 1},
    ]
    data = struct.pack("<QII", 0, 0, 0x1234).hex()
    recording = observer.script(
        NULL,
        sev_step(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, data=data),
        sev_step(measure),
        sev_step(measure),
        rules=rules,
    )
    assert [event["sev"]["id"] for event in recording.events] == [3, 6, 6, 3]
    assert recording.events[0]["executed"] is False
    assert (recording.events[3]["injected"], recording.events[3]["sev"]["in"]) == (True, data)
    assert [result["ret"] for result in recording.results] == [0, ENOTTY, 0]


def test_an_injection_does_not_disturb_signals(observer: Observer) -> None:
    """A signal that comes during an injected call is delivered afterwards."""
    rules = [
        {"name": "d", "request": kvm.KVM_MEMORY_ENCRYPT_REG_REGION, "action": "drop"},
        {
            "name": "i",
            "request": kvm.KVM_MEMORY_ENCRYPT_REG_REGION,
            "action": "inject-after",
            "inject": {"request": kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION, "in": "22" * 16},
        },
    ]
    program = (
        "import signal\nseen = []\nsignal.signal(signal.SIGALRM, lambda n, f: seen.append(n))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)\nfor _ in range(300): act()\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\nprint(len(seen) > 0)"
    )
    recording = observer.run(sys.executable, "-c", f"{ACT}\n{program}", rules=rules)
    assert (recording.status, recording.stdout.strip()) == (0, "True")
    counts = Counter(event["req"] for event in recording.events)
    assert counts[kvm.KVM_MEMORY_ENCRYPT_REG_REGION] == counts[kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION] == 300


# On a real KVM


def _kvm() -> str | None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


needs_kvm = pytest.mark.skipif(_kvm() is not None, reason=str(_kvm()))
QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
GUEST = f"{QEMU} -accel kvm -machine q35 -m 64 -nodefaults -display none -no-shutdown -monitor stdio".split()
MACHINE: list[dict[str, Any]] = [
    {"open": "/dev/kvm", "as": "kvm"},
    {"on": "kvm", "req": kvm.KVM_CREATE_VM, "arg": 0, "as": "vm"},
    {"on": "vm", "req": kvm.KVM_CREATE_VCPU, "arg": 0, "as": "vcpu0"},
    {"on": "vm", "req": kvm.KVM_CREATE_VCPU, "arg": 1, "as": "vcpu1"},
]


@needs_kvm
def test_kinds_of_a_real_machine(observer: Observer) -> None:
    """Descriptors are what the calls made them."""
    step = {"on": "vcpu1", "req": kvm.KVM_GET_REGS, "hex": "00" * 144}
    recording = observer.script(*MACHINE, step)
    assert [event["kind"].split(":")[0] for event in recording.events] == ["kvm", "vm", "vm", "vcpu"]
    assert recording.events[3]["kind"] == "vcpu:1"
    assert recording.events[3]["vm"] == recording.events[0]["ret"]
    assert recording.results[3]["hex"][8 * 32 : 8 * 32 + 4] == "f0ff"


@needs_kvm
@pytest.mark.parametrize("owner", [{}, {"thread": True}], ids=["main-thread", "new-thread"])
@pytest.mark.parametrize(
    "sign",
    [
        pytest.param({"on": "vm", "req": kvm.KVM_SET_CLOCK, "hex": "00" * 48}, id="clock"),
        pytest.param({"pause": 0.5}, id="quiet"),
    ],
)
def test_first_run_of_a_small_vmm(observer: Observer, sign: dict[str, Any], owner: dict[str, Any]) -> None:
    """The first KVM_RUN is one event, whichever thread issues it and whatever announces it."""
    run = {"on": "vcpu0", "req": kvm.KVM_RUN, "arg": 0, **owner}
    recording = observer.script(*MACHINE, sign, run, run)
    assert [event["kind"] for event in recording.of(kvm.KVM_RUN)] == ["vcpu:0"]
    assert {"run": 0} in recording.milestones
    assert recording.end["ran"] == [0]


@needs_kvm
def test_one_thread_that_runs_two_vcpus(observer: Observer) -> None:
    """Each vCPU's first KVM_RUN is met, though the thread is the same."""
    clock = {"on": "vm", "req": kvm.KVM_SET_CLOCK, "hex": "00" * 48}
    runs = [{"on": name, "req": kvm.KVM_RUN, "arg": 0} for name in ("vcpu0", "vcpu1")]
    recording = observer.script(*MACHINE, clock, *runs, *runs)
    assert [event["kind"] for event in recording.of(kvm.KVM_RUN)] == ["vcpu:0", "vcpu:1"]


@needs_kvm
def test_inject_on_another_vcpu(observer: Observer) -> None:
    """A plain request with given bytes, on a vCPU chosen by its index."""
    regs = kvm.REGS.encode(rip=0x1234, rflags=2)
    rule = {
        "name": "i",
        "request": kvm.KVM_GET_MP_STATE,
        "vcpu": 0,
        "action": "inject-after",
        "inject": {"request": kvm.KVM_SET_REGS, "in": regs.hex(), "vcpu": 1},
    }
    steps = [
        {"on": "vcpu0", "req": kvm.KVM_GET_MP_STATE, "hex": "ffffffff"},
        {"on": "vcpu1", "req": kvm.KVM_GET_REGS, "hex": "00" * 144},
    ]
    recording = observer.script(*MACHINE, *steps, rules=[rule])
    (injected,) = recording.of(kvm.KVM_SET_REGS)
    assert (injected["kind"], injected["ret"], injected["injected"]) == ("vcpu:1", 0, True)
    assert recording.results[3] == {"ret": 0, "hex": "00000000"}
    assert kvm.REGS.decode(bytes.fromhex(recording.results[4]["hex"]))["rip"] == 0x1234


@needs_kvm
def test_rewrite_result(observer: Observer) -> None:
    """The VMM sees changed bytes, the event shows the kernel's own."""
    rule = {
        "name": "r",
        "request": kvm.KVM_GET_REGS,
        "action": "rewrite-result",
        "where": "arg",
        "offset": 128,
        "size": 8,
        "value": 0xABCD,
    }
    step = {"on": "vcpu0", "req": kvm.KVM_GET_REGS, "hex": "00" * 144}
    recording = observer.script(*MACHINE, step, rules=[rule])
    assert kvm.REGS.decode(bytes.fromhex(recording.results[3]["hex"]))["rip"] == 0xABCD
    assert kvm.REGS.decode(bytes.fromhex(recording.events[3]["out"]))["rip"] == 0xFFF0


@needs_kvm
def test_a_rule_about_one_capability(observer: Observer) -> None:
    """`arg` chooses among the capabilities, recorded ones or not."""
    rule = {"name": "r", "request": kvm.KVM_CHECK_EXTENSION, "arg": 3, "action": "return", "ret": 42}
    steps = [{"on": "kvm", "req": kvm.KVM_CHECK_EXTENSION, "arg": arg} for arg in (3, 4)]
    recording = observer.script(MACHINE[0], *steps, rules=[rule])
    assert recording.results[0]["ret"] == 42
    assert recording.results[1]["ret"] != 42
    assert recording.events[0]["rules"] == ["r"]


@needs_kvm
def test_a_rule_about_kvm_run(observer: Observer) -> None:
    """KVM_RUN can be sabotaged, too, and its first event stays one event."""
    rule = {"name": "r", "request": kvm.KVM_RUN, "vcpu": 0, "skip": 1, "action": "fail", "errno": 14}
    run = {"on": "vcpu0", "req": kvm.KVM_RUN, "arg": 0}
    recording = observer.script(*MACHINE, run, run, rules=[rule])
    assert recording.results[4]["ret"] == -14
    assert {"run": 0} in recording.milestones


def until_running(observer: Observer) -> list[dict[str, Any]]:
    """Read milestones until every vCPU has run."""
    read: list[dict[str, Any]] = []
    for line in observer.status:
        read.append(json.loads(line))
        made = {milestone.get("vcpu") for milestone in read} - {None}
        if made and made == {milestone.get("run") for milestone in read} - {None}:
            break
    return read


def launch(observer: Observer, *more: str) -> Recording:
    """Launch a plain guest; quit once every vCPU has run."""
    process = observer.start(*GUEST, *more)
    return observer.finish(process, until_running(observer), "quit\n")


@needs_kvm
@needs_qemu
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-smp", "1"], id="1vcpu"),
        pytest.param(["-smp", "16"], id="16vcpu"),
        pytest.param(["-smp", "4", "-sandbox", "on"], id="sandbox"),
    ],
)
def test_a_plain_guest_of_qemu(observer: Observer, options: list[str]) -> None:
    """Every vCPU's registers and first KVM_RUN are there, once."""
    recording = launch(observer, *options)
    vcpus = list(range(int(options[1])))
    assert recording.status == 0
    assert [event["arg"] for event in recording.of(kvm.KVM_CREATE_VCPU)] == vcpus
    assert sorted(event["kind"] for event in recording.of(kvm.KVM_RUN)) == sorted(f"vcpu:{n}" for n in vcpus)
    assert recording.end["ran"] == vcpus
    assert len(recording.of(kvm.KVM_SET_REGS)) >= 2 * len(vcpus)
    last = {event["kind"]: event["in"] for event in recording.of(kvm.KVM_SET_REGS)}
    assert {kvm.REGS.decode(bytes.fromhex(raw))["rip"] for raw in last.values()} == {0xFFF0}


@needs_kvm
@needs_qemu
def test_registers_of_a_running_guest_are_read_in_full(observer: Observer) -> None:
    """After the first KVM_RUN a read shows its result."""
    recording = launch(observer, "-smp", "2")
    assert {event["ret"] for event in recording.of(kvm.KVM_GET_MSRS)[-2:]} == {1}


@needs_kvm
@needs_qemu
def test_a_daemonized_guest(observer: Observer, tmp_path: Path) -> None:
    """-daemonize: QEMU's first process ends at once, its guest is recorded to the end."""
    sock = tmp_path / "qmp"
    argv = [*GUEST[: GUEST.index("-monitor")], "-daemonize", "-qmp", f"unix:{sock},server=on,wait=off"]
    process = observer.start(*argv)
    before = until_running(observer)
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(sock))
        qmp.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
        while qmp.recv(4096):
            pass
    recording = observer.finish(process, before)
    assert recording.status == 0
    assert recording.end["exit"] == {"status": 0}
    assert recording.end["last"]["status"] == 0
