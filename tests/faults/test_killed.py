# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGKILL, and silence, of each part of a run: nothing is left of it within 10 s, and nothing failed."""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_seves.blocked import EXIT_BLOCKED
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.spec import GuestSpec
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model import process_tree
from pytest_seves.model.host import ModelHost
from tests.faults.conftest import PROJECT, Rig
from tests.faults.proxy import Proxy

StartModel = Callable[..., ModelHost]
StartProxy = Callable[[ModelHost], Proxy]

WITHIN_S = 10.0
SMALL = (str(PROJECT / "suites/smm"), "-k", "refused or auto", "-p", "no:cacheprovider")
#: A guest that runs on: nobody ends its QEMU. Then something happens to the run.
STANDING = """
import os, pytest, signal
from pytest_seves.guest.calls import open_kvm
from pytest_seves.guest.observe import begin
from pytest_seves.guest.spec import GuestSpec
from tests.faults.proxy import tell

def stand(launch_guest, sev_host):
    argv = launch_guest().argv
    assert begin(sev_host.client, argv, spec=GuestSpec(ends="never"), timeout_s=300)["phase"] == ""

@pytest.mark.parametrize("number", range(20))
def test_it(kvm, launch_guest, sev_host, number):
    if number == 5:
        stand(launch_guest, sev_host)
        {wrong}
    assert kvm(open_kvm())[0].errno is None
"""

#: One of two workers looks at the host when the other one's guest stands, and then goes on.
LOOKS = """
import functools, os, pytest

@functools.cache
def look(target):
    open("stands").close()
    assert target.client.call("health")["misc"]["current"]["sev_es"] == 1
    target.facts
    open("seen", "w").close()

@pytest.fixture(autouse=True)
def looks(sev_host):
    if os.environ["PYTEST_XDIST_WORKER"] == "gw1":
        look(sev_host)
"""


def wait_gone(find: Callable[[], list[int]], within_s: float = WITHIN_S) -> None:
    """Wait until `find` finds no process any more.

    :raise AssertionError: one is still there.
    """
    deadline = time.monotonic() + within_s
    while pids := find():
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                left_s = max(0.0, deadline - time.monotonic())
                assert select.select([pidfd], [], [], left_s)[0], f"left: {pid}: {_words(pid)}"
            finally:
                os.close(pidfd)


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:300]
    except OSError:
        return "(gone)"


def sessions(model: ModelHost, but: frozenset[int]) -> Callable[[], list[int]]:
    """Processes of a model host that were not there before."""
    return lambda: [pid for pid in process_tree.descendants(model.pid) if pid not in but]


def idle(model: ModelHost) -> frozenset[int]:
    """Its processes while nobody is logged in."""
    return frozenset(process_tree.descendants(model.pid))


def launch(model: ModelHost) -> None:
    """A guest can be launched on a host with a single ASID: nobody holds it."""
    with Target(entry_of(model)) as target:
        assert Launcher(target).launch(GuestSpec()).timeline.runs


def mentioning(path: Path) -> Callable[[], list[int]]:
    """Processes that have `path` in their arguments or environment, but this one."""

    def find() -> list[int]:
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mentions(pid)]

    def mentions(pid: int) -> bool:
        try:
            texts = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
        except OSError:
            return False
        return pid != os.getpid() and any(str(path).encode() in text for text in texts)

    return find


def kill_at(process: subprocess.Popen[str], after_s: float) -> None:
    """SIGKILL at that moment, unless it has ended."""
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def test_the_controller_at_20_moments(tmp_path: Path, start_model: StartModel) -> None:
    """Ten times the host outlives it, and its only ASID is free again; ten times the host is its own."""
    chance = random.Random(5)
    rig = Rig(tmp_path)
    rig.host("lab1", start_model("linux-6.1:es_asids=1"))
    began = time.monotonic()
    assert rig.run(*SMALL, "--sev-host", "lab1", f"--sev-lab={tmp_path / 'lab'}").status == 0
    longest_s = time.monotonic() - began
    moments = [chance.uniform(0.2, longest_s) for _ in range(20)]

    def on_a_host(number: int) -> None:
        for moment in moments[number::4]:
            own = Rig(tmp_path / f"host{number}")
            own.path.mkdir(exist_ok=True)
            own.host("lab1", models[number])
            before = idle(models[number])
            kill_at(own.start(*SMALL, "--sev-host", "lab1", f"--sev-lab={own.path / 'lab'}"), moment)
            wait_gone(sessions(models[number], before))
            launch(models[number])

    def with_its_own(number: int) -> None:
        for moment in moments[number::4]:
            own = Rig(tmp_path / f"own{number}", {"TMPDIR": str(tmp_path / f"own{number}/temp")})
            (own.path / "temp").mkdir(parents=True, exist_ok=True)
            kill_at(own.start(*SMALL, "--sev-host", "model"), moment)
            wait_gone(mentioning(own.path / "temp"))
            assert not list((own.path / "temp").glob("*/sshd_config"))  # a host takes its directory along
            shutil.rmtree(own.path / "temp")

    models = [start_model("linux-6.1:es_asids=1") for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        lanes = [pool.submit(on_a_host, 0), pool.submit(on_a_host, 1)]
        lanes += [pool.submit(with_its_own, 2), pool.submit(with_its_own, 3)]
        for lane in lanes:
            lane.result()


def test_the_agent(rig: Rig, start_model: StartModel) -> None:
    """Its guest goes along; one test is an error, and the next ones have an agent again."""
    model = start_model("linux-6.1:es_asids=1")
    rig.host("lab1", model)
    before = idle(model)
    rig.write("test_it.py", STANDING.format(wrong="os.kill(sev_host.client.hello['pid'], signal.SIGKILL)"))
    result = rig.run("--sev-host", "lab1")
    assert result.outcomes() == {"passed": 19, "error": 1}, result.text
    assert "AgentDied: lab1: the agent ended while it was needed" in result.text
    wait_gone(sessions(model, before))
    launch(model)


@pytest.mark.parametrize("distribution", ["load", "loadgroup"])
def test_an_xdist_worker(rig: Rig, start_model: StartModel, distribution: str) -> None:
    """Its guest goes along; its test is an error, the others are run, and the run ends by itself."""
    model = start_model("linux-6.1:es_asids=1")
    rig.host("lab1", model)
    before = idle(model)
    rig.write("test_it.py", STANDING.format(wrong="os.kill(os.getpid(), signal.SIGKILL)"))
    result = rig.run("--sev-host", "lab1", "-n", "2", "--dist", distribution)
    assert result.outcomes() == {"passed": 19, "error": 1}, result.text
    assert "crashed while running 'test_it.py::test_it[5]'" in result.text
    wait_gone(sessions(model, before))
    launch(model)


def test_an_xdist_worker_that_holds_the_only_asid(rig: Rig, start_model: StartModel) -> None:
    """Another worker that looks at the host meanwhile finds it ready: a guest of the run is no stranger's."""
    model = start_model("linux-6.1:es_asids=1")
    rig.host("lab1", model)
    for fifo in ("stands", "seen"):
        os.mkfifo(rig.path / fifo)
    rig.write("conftest.py", LOOKS)
    wrong = "open('stands', 'w').close(); open('seen').close(); os.kill(os.getpid(), signal.SIGKILL)"
    rig.write("test_it.py", STANDING.format(wrong=wrong))
    result = rig.run("--sev-host", "lab1", "-n", "2", "--dist", "load")
    assert result.outcomes() == {"passed": 19, "error": 1}, result.text


def test_silence(rig: Rig, start_model: StartModel, start_proxy: StartProxy) -> None:
    """A connection that is cut silently: the guest goes once both sides have noticed, after 8 s."""
    model = start_model("linux-6.1:es_asids=1")
    rig.host("lab1", model, start_proxy(model))
    before = idle(model)
    wrong = "tell(int(os.environ['LAB1_PROXY']), 'cut'); Path('cut').touch()"
    rig.write("test_it.py", "from pathlib import Path\n" + STANDING.format(wrong=wrong))
    result = rig.run("--sev-host", "lab1")
    assert result.outcomes() == {"passed": 5, "error": 15}, result.text
    assert result.status == EXIT_BLOCKED
    processes = sessions(model, before)  # sshd's own stay: nothing tells them
    wait_gone(lambda: [pid for pid in processes() if "sshd:" not in _words(pid)])
    launch(model)


@pytest.mark.parametrize("delay_ms", [50])
def test_a_slow_line(rig: Rig, start_model: StartModel, start_proxy: StartProxy, delay_ms: int) -> None:
    """Delay is no fault."""
    model = start_model()
    proxy = start_proxy(model)
    proxy.delay_s = delay_ms / 1000
    rig.host("lab1", model, proxy, connect_timeout_s=10.0, keepalive_s=5)
    result = rig.run(*SMALL, "--sev-host", "lab1", f"--sev-lab={rig.path / 'lab'}")
    assert result.status == 0, result.text
    assert not {"failed", "error"} & set(result.outcomes())
