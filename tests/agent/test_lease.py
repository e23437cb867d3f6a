# SPDX-License-Identifier: GPL-2.0-or-later
"""The lease of a host between real agents that meet in one directory."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent.lease_file import OwnFile
from tests.agent.standing import QUIET

LocalAgent = Any
Start = Callable[..., LocalAgent]
NAP = [sys.executable, "-c", "import time; time.sleep(600)"]
EXPIRY_S = 1.0
A, B, C = (secrets.token_hex(4) for _ in range(3))
"""Runs. Tests that run beside these have others: a run's processes are found on the whole machine."""


def acquire(agent: LocalAgent, run: str, timeout_s: float = 0, **changes: Any) -> dict[str, Any]:
    """Ask for the lease of a run; the reply."""
    tenant = {"run": run, "user": "alice", "machine": "desk", "pid": 4711, "shared": False, "expiry_s": 600}
    reply: dict[str, Any] = agent.call("lease.acquire", timeout_s=timeout_s, **{**tenant, **changes})
    return reply


def launch(agent: LocalAgent, run: str) -> None:
    """Start something that lasts, as the VMM, and wait until it runs."""
    before = len(processes_of(run))
    agent.ask("observe", argv=NAP, script=QUIET, mode="stop", timeout_s=60)
    until(lambda: len(processes_of(run)) > before)


def processes_of(run: str) -> list[int]:
    """Who has the run's id in its environment."""
    start = f"PYTEST_SEVES_RUN={run}@".encode()
    return [pid for pid, texts in _environments() if any(text.startswith(start) for text in texts)]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(path.name), (path / "environ").read_bytes().split(b"\0")


def until(condition: Callable[[], object], limit_s: float = 15) -> None:
    """Look again until it is so."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)


def kill(agent: LocalAgent, number: int = signal.SIGKILL) -> None:
    """Send a signal to the agent's process."""
    os.kill(agent.hello["pid"], number)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"shared": 1}, "ValueError"),
        ({"user": "a\x1b[2J"}, "ValueError"),
        ({"user": "x" * 65}, "ValueError"),
        ({"run": "../../x"}, "ValueError"),
        ({"run": 7}, "ValueError"),
        ({"expiry_s": -1}, "ValueError"),
        ({"colour": "red"}, "ValueError"),
    ],
)
def test_a_tenant_that_makes_no_sense(agent: LocalAgent, changes: dict[str, Any], kind: str) -> None:
    """It is refused, and the conversation goes on."""
    assert acquire(agent, **{"run": A, **changes})["error"]["kind"] == kind
    assert acquire(agent, A)["ok"] == {"token": 1}
    assert acquire(agent, A)["error"]["kind"] == "ValueError"


def test_one_run_at_a_time(start_agent: Start) -> None:
    """Another run is told who has the host; the agents of the run itself share its token."""
    first, second, other = start_agent(), start_agent(), start_agent()
    assert acquire(first, A)["ok"] == {"token": 1}
    assert acquire(second, A)["ok"] == {"token": 1}
    held = acquire(other, B)["ok"]["held"]
    assert {name: held[name] for name in ("run", "user", "machine", "pid", "shared", "expired")} == {
        "run": A,
        "user": "alice",
        "machine": "desk",
        "pid": 4711,
        "shared": False,
        "expired": False,
    }
    assert 0 <= held["held_s"] < 60
    first.end()
    assert acquire(other, B)["ok"]["held"]["run"] == A
    number = other.ask(
        "lease.acquire", run=B, user="b", machine="b", pid=1, shared=False, expiry_s=600, timeout_s=60
    )
    second.end()
    assert other.receive(lambda frame: frame.get("id") == number)["ok"] == {"token": 2}


def test_shared(start_agent: Start) -> None:
    """Runs that all share a host have it at the same time; one that does not waits for all of them."""
    first, second, alone = start_agent(), start_agent(), start_agent()
    assert acquire(first, A, shared=True)["ok"] == {"token": 1}
    assert acquire(second, B, shared=True)["ok"] == {"token": 2}
    launch(first, A)
    first.end()
    assert acquire(alone, C)["ok"]["held"]["run"] == B
    second.end()
    assert acquire(alone, C)["ok"] == {"token": 3}


def test_a_killed_agent_frees_the_host_at_once(start_agent: Start, tmp_path: Path) -> None:
    """The kernel frees its lock. Its orphans are killed before the next run begins, nobody else's."""
    holder, other = start_agent(), start_agent()
    acquire(holder, A)
    launch(holder, A)
    holder.ask(
        "exec", argv=["sh", "-c", "sleep 600 & wait"], timeout_s=60
    )  # sleep knows of no parent's death
    until(lambda: len(processes_of(A)) == 3)
    with bystander(f"{A}b@{tmp_path}"):
        kill(holder)
        until(lambda: len(processes_of(A)) == 1)
        assert acquire(other, B)["ok"] == {"token": 2}
        assert processes_of(A) == []


def test_a_run_with_two_hosts_on_one_machine(start_agent: Start, tmp_path: Path) -> None:
    """Its guests on the one are not touched when another run begins on the other."""
    holder, other = start_agent(), start_agent()
    acquire(holder, A)
    holder.end()
    with bystander(f"{A}@{tmp_path / 'elsewhere'}"):
        assert acquire(other, B)["ok"] == {"token": 2}


@contextmanager
def bystander(mark: str) -> Iterator[None]:
    """A process of another run, or of the same one on another host, that nobody kills."""
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, "PYTEST_SEVES_RUN": mark})
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_stopped_agent_that_wakes_up(start_agent: Start) -> None:
    """Another run takes over after the expiry; its guests are dead by then, and it launches nothing more."""
    holder, other = start_agent(), start_agent()
    acquire(holder, A, expiry_s=EXPIRY_S)
    launch(holder, A)
    kill(holder, signal.SIGSTOP)
    begin = time.monotonic()
    assert acquire(other, B, timeout_s=15)["ok"] == {"token": 2}
    assert time.monotonic() - begin > EXPIRY_S / 2
    assert processes_of(A) == []
    number = holder.ask("observe", argv=NAP, script=QUIET, mode="stop", timeout_s=60)
    kill(holder, signal.SIGCONT)
    error = holder.receive(lambda frame: frame.get("id") == number)["error"]
    assert error["kind"] == "LeaseLost"
    assert f"alice@desk has it (run {B}, fencing token 2)" in error["message"]
    assert processes_of(A) == []
    status, words = holder.end()
    assert status in (0, 6)  # it was told to end, or had noticed by itself
    assert not words or "is lost" in words
    launch(other, B)


@pytest.fixture
def meeting_place() -> Iterator[Path]:
    """A directory as /tmp is: all may write, nobody may remove another one's file."""
    with tempfile.TemporaryDirectory(prefix="seves-lease-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def later_lease(agent: LocalAgent, **changes: Any) -> Path:
    """The file of a run that had the host after the agent's, and ended; its token is 5."""
    who = {"run": B, "user": "bob", "machine": "m", "pid": 1}
    record = {**who, "shared": False, "expiry_s": 30, "token": 5, "es_asids": 0}
    file = OwnFile(str(agent.temp), {**record, **changes})
    file.close()
    return Path(file.path)


def test_a_later_token(agent: LocalAgent) -> None:
    """It fences off whoever has a lower one, and says whose it is."""
    acquire(agent, A)
    later_lease(agent)
    for op, args in (
        ("observe", {"argv": NAP, "script": QUIET}),
        ("calls", {"program": [{"do": "misc"}]}),
        ("alone.begin", {}),
    ):
        error = agent.call(op, timeout_s=60, **args)["error"]
        assert error["kind"] == "LeaseLost"
        assert f"bob@m has it (run {B}, fencing token 5)" in error["message"]
    assert "ok" in agent.call("file.read", path="/proc/version")


def test_a_later_token_of_a_run_that_shares(agent: LocalAgent) -> None:
    """It is no reason to stop."""
    acquire(agent, A, shared=True)
    later_lease(agent, shared=True)
    launch(agent, A)


@pytest.mark.skipif(os.geteuid() != 0, reason="agents of two accounts: only root can start them")
def test_a_token_that_another_account_wrote(start_agent: Start, meeting_place: Path) -> None:
    """It steals nothing."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"TMPDIR={meeting_place}")
    holder = start_agent(nobody)
    holder.temp = meeting_place
    acquire(holder, A)
    os.chown(later_lease(holder), 65533, 65533)
    launch(holder, A)


def test_a_file_that_is_gone(agent: LocalAgent) -> None:
    """An agent whose lease nobody can see any more has none."""
    acquire(agent, A)
    (file,) = agent.temp.glob(f"pytest-seves.lease.{A}.*")
    file.unlink()
    error = agent.call("observe", argv=NAP, script=QUIET, timeout_s=60)["error"]
    assert error["kind"] == "LeaseLost"
    assert "its file is gone" in error["message"]


def test_a_stopped_agent_that_nobody_waited_for(start_agent: Start) -> None:
    """It has its lease still when it wakes up."""
    holder = start_agent()
    acquire(holder, A, expiry_s=EXPIRY_S)
    kill(holder, signal.SIGSTOP)
    time.sleep(EXPIRY_S * 1.5)
    number = holder.ask("observe", argv=["true"], script=QUIET, mode="stop", timeout_s=60)
    kill(holder, signal.SIGCONT)
    assert "ok" in holder.receive(lambda frame: frame.get("id") == number)


@pytest.mark.skipif(os.geteuid() != 0, reason="agents of two accounts: only root can start them")
def test_another_account(start_agent: Start, meeting_place: Path) -> None:
    """It sees who holds the host and waits; it takes nothing over, since it could not end what runs there."""
    environment = ("env", f"TMPDIR={meeting_place}")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *environment)
    holder, other = start_agent(environment), start_agent(nobody)
    assert acquire(holder, A, expiry_s=EXPIRY_S)["ok"] == {"token": 1}
    kill(holder, signal.SIGSTOP)
    held = acquire(other, B, timeout_s=EXPIRY_S * 2)["ok"]["held"]
    assert (held["run"], held["expired"], held["agent"]) == (A, True, holder.hello["pid"])
    kill(holder)
    holder.process.wait()
    assert acquire(other, B)["ok"] == {"token": 2}
    late = start_agent(environment)
    assert acquire(late, C)["ok"]["held"]["run"] == B
    other.end()
    assert acquire(late, C)["ok"] == {"token": 3}
