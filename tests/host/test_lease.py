# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs that want the same host: real runs of pytest, each a process of its own, against one model host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pytest_seves.errors import LeaseError, LeaseLost
from pytest_seves.host import lease
from pytest_seves.host.lease import Tenant
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost

Connect = Callable[..., Target]
_LIMIT_S = 120
GUEST = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
#: What launches it: it is not talked to, and runs on.
LAUNCH = {
    "argv": ["sh", "-c", 'exec 3<&-; exec "$@"', "sh", *GUEST],
    "script": {"questions": [], "paused": False, "paused_steps": [], "steps": [], "ends": "never"},
    "mode": "stop",
    "timeout_s": 600,
}
#: A test that has the host until its other end of a pipe is written to.
HOLDS = f"""
import os
def test_it(sev_host):
    assert "launch" in sev_host.client.call("observe", {LAUNCH!r}, timeout_s=30)
    open("pids", "w").write(f"{{os.getpid()}} {{sev_host.client.hello['pid']}}")
    os.rename("pids", "holds")
    open("go").read()
"""
TOUCHES = "def test_it(sev_host): sev_host.client"


@pytest.fixture
def model() -> Iterator[ModelHost]:
    """A model host of this test alone: nobody else has a lease of it."""
    with ModelHost.start() as host:
        yield host


class Lab:
    """A model host that looks like a real one to several runs.

    :ivar model: the host.
    """

    def __init__(self, directory: Path, model: ModelHost, stack: ExitStack) -> None:
        self.model = model
        self._directory = directory
        self._stack = stack
        self.file("")

    def file(self, more: str) -> None:
        """Write the host's lab file, with `more` in its section [host]."""
        (self._directory / "lab").mkdir(exist_ok=True)
        (self._directory / "lab/lab1.toml").write_text(
            f'[host]\naddress = "127.0.0.1"\nport = {self.model.port}\nuser = "{self.model.user}"\n'
            f'host_key = "{self.model.host_key}"\nidentity = "{self.model.identity}"\n{more}\n'
            f'[firmware]\npath = "{self.model.firmware}"\n'
        )

    def start(self, name: str, test: str, *arguments: str, user: str = "bob") -> Run:
        """A run of `test` in a directory of its own."""
        directory = self._directory / name
        directory.mkdir()
        (directory / "test_it.py").write_text(test)
        (directory / "pytest.ini").write_text("[pytest]\n")
        os.mkfifo(directory / "go")
        lab = f"--sev-lab={self._directory / 'lab'}"
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--sev-host=lab1", lab, "-p", "no:labgrid", *arguments],
            cwd=directory,
            env={**os.environ, "LOGNAME": user},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._stack.callback(_stop, process)
        return Run(directory, process)

    def hold(self, name: str = "first") -> Run:
        """A run of alice that has the host, and a guest on it."""
        run = self.start(name, HOLDS, user="alice")
        until((run.directory / "holds").exists)
        until(lambda: guests(run.id))
        return run


class Run:
    """A run of pytest."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.process = process
        self._text = ""

    @property
    def pids(self) -> list[int]:
        """Its own process, and its agent's, once it holds the host."""
        return [int(word) for word in (self.directory / "holds").read_text().split()]

    @property
    def id(self) -> str:
        """Its id, from the environment of a descendant of its agent."""
        for pid in descendants(self.pids[1]):
            if found := re.search(rb"PYTEST_SEVES_RUN=(\w+)", environment(pid)):
                return found[1].decode()
        return ""

    def read_until(self, pattern: str) -> str:
        """Its output so far, once it matches `pattern`."""
        assert self.process.stdout
        while not re.search(pattern, self._text):
            line = self.process.stdout.readline()
            assert line, f"the run has ended: {self._text}"
            self._text += line
        return self._text

    def go(self) -> None:
        """Let it end."""
        (self.directory / "go").write_text("")

    def end(self) -> str:
        """All its output, when it has ended."""
        output, _ = self.process.communicate(timeout=_LIMIT_S)
        return self._text + output


def _stop(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def environment(pid: int) -> bytes:
    """The environment that a process was started with."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def processes() -> list[int]:
    """All of this machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = [pid]
    parents = {}
    for process in processes():
        with suppress(OSError):
            stat = Path(f"/proc/{process}/stat").read_text()
            parents[process] = int(stat.rpartition(")")[2].split()[1])
    for ancestor in found:
        found += [process for process, parent in parents.items() if parent == ancestor]
    return found[1:]


def guests(run: str) -> list[int]:
    """The QEMU processes of a run."""
    start = f"PYTEST_SEVES_RUN={run}@".encode()
    return [
        pid
        for pid in processes()
        if any(text.startswith(start) for text in environment(pid).split(b"\0"))
        and "qemu" in os.readlink(f"/proc/{pid}/exe")
    ]


def until(condition: Callable[[], object]) -> None:
    """Look again until it is so."""
    end = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)


@pytest.fixture
def lab(tmp_path: Path, model: ModelHost) -> Iterator[Lab]:
    """A lab with one host."""
    with ExitStack() as stack:
        yield Lab(tmp_path, model, stack)


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_the_second_run_waits(lab: Lab, capture: str) -> None:
    """It says at once whom it waits for, whatever captures output, and goes on when that run ends."""
    first = lab.hold()
    second = lab.start("second", TOUCHES, f"--capture={capture}")
    text = second.read_until("waiting")
    who = rf"alice@\S+ since \d\d:\d\d \(run {first.id}\)"
    assert re.search(rf"(?m)^lab1: held by {who}, waiting up to 600 s$", text)
    first.go()
    assert "1 passed" in first.end()
    assert "1 passed" in second.end()


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_the_wait_has_a_limit(lab: Lab, workers: list[str]) -> None:
    """Then every test is an error that names the holder; each process waits once, not each test."""
    lab.file("lease_wait_s = 2")
    first = lab.hold()
    begin = time.monotonic()
    second = lab.start("second", TOUCHES + "\ndef test_again(sev_host): sev_host.client", *workers)
    text = second.end()
    assert "2 failed" not in text
    assert "2 errors" in text
    assert re.search(r"(?m)^lab1: held by alice@.*, waiting up to 2 s$", text)
    assert re.search(
        rf"LeaseError: lab1: held by alice@.*\(run {first.id}\), and did not let go within 2 s", text
    )
    assert 2 < time.monotonic() - begin < _LIMIT_S
    assert guests(first.id)


def test_no_wait(lab: Lab) -> None:
    """With lease_wait_s = 0 the run fails at once."""
    lab.file("lease_wait_s = 0")
    lab.hold()
    text = lab.start("second", TOUCHES).end()
    assert "1 error" in text
    assert "waiting up to" not in text


def test_a_shared_host(lab: Lab) -> None:
    """Runs use it side by side when its file says so."""
    lab.file("shared = true\nlease_wait_s = 0")
    first = lab.hold()
    assert "1 passed" in lab.start("second", TOUCHES).end()
    assert first.process.poll() is None


def test_workers_of_a_run_share_the_lease(lab: Lab) -> None:
    """Two xdist workers have the host at the same time, and wait for nobody."""
    lab.file("lease_wait_s = 0")
    meet = (
        "def test_write(sev_host): sev_host.client; open('go', 'w').close()\n"
        "def test_read(sev_host): sev_host.client; open('go').close()\n"  # each waits for the other
    )
    assert "2 passed" in lab.start("both", meet, "-n", "2", "--dist", "load").end()


def test_the_controller_is_killed(lab: Lab) -> None:
    """The next run gets the host, the guests are gone, and another run's are not touched."""
    lab.file("shared = true")
    bystander = lab.hold("bystander")
    first = lab.hold()
    run, other = first.id, bystander.id
    os.kill(first.pids[0], signal.SIGKILL)
    assert "1 passed" in lab.start("second", TOUCHES).end()
    assert guests(run) == []
    assert len(guests(other)) == 1


def test_the_agent_is_killed(lab: Lab) -> None:
    """The host is free at once, and guests that outlived the agent are killed before the next run begins."""
    first = lab.hold()
    run = first.id
    mark = f"{run}@{lab.model.directory}"
    survivor = subprocess.Popen(GUEST, env={**os.environ, "PYTEST_SEVES_RUN": mark})
    bystander = subprocess.Popen(GUEST, env={**os.environ, "PYTEST_SEVES_RUN": "0" + mark})
    try:
        until(lambda: len(guests(run)) == 2 and guests("0" + run))
        os.kill(first.pids[1], signal.SIGKILL)
        text = lab.start("second", TOUCHES).end()
        assert "1 passed" in text
        assert survivor.wait(_LIMIT_S) == -signal.SIGKILL
        assert guests(run) == []
        assert bystander.poll() is None
    finally:
        for process in (survivor, bystander):
            process.kill()
            process.wait()


@pytest.fixture
def connect(model: ModelHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Hosts as this process sees them, for several runs; leases expire soon."""
    monkeypatch.setattr(lease, "EXPIRY_S", 1.0)
    with ExitStack() as stack:

        def target(tenant: Tenant | None = None) -> Target:
            return stack.enter_context(Target(entry_of(model), tenant))

        yield target


def test_what_it_costs(connect: Connect) -> None:
    """A free host takes one request, whoever connects later in the same run one more."""
    client = connect().client
    assert next(client._numbers) == 2
    assert next(connect().client._numbers) == 2


def test_the_fence(connect: Connect) -> None:
    """A holder that was stopped while another run took over can launch nothing when it wakes up."""
    first, second = (connect(Tenant(run, "alice", "desk", 1)) for run in ("1a2b3c4d", "5e6f7a8b"))
    pid = first.client.hello["pid"]
    first.client.call("observe", LAUNCH)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert second.client.call("observe", LAUNCH)["launch"] == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(LeaseLost, match="run 5e6f7a8b"):
        first.client.call("observe", LAUNCH)
    assert guests("1a2b3c4d") == []
    with pytest.raises(LeaseError):
        first.client.call("facts", {"vmm": "none", "firmware": None})


def test_names() -> None:
    """A run is named in words that any terminal shows, whatever user and machine are called."""
    tenant = Tenant.new()
    assert re.fullmatch("[0-9a-f]{8}", tenant.run)
    assert tenant.pid == os.getpid()
    assert lease._plain("a b\x1b[2J/€") == "a?b??2J??"
