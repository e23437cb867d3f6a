# SPDX-License-Identifier: GPL-2.0-or-later
"""A host from labgrid: a real coordinator and a real exporter on loopback hand out the model host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_seves.errors import HostError, LeaseError
from pytest_seves.host.inventory import Labgrid, LabHost
from pytest_seves.host.labgrid import acquired
from pytest_seves.host.lease import Tenant, say_nothing
from pytest_seves.model.host import ModelHost

_LIMIT_S = 120
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
TENANT = Tenant("1a2b3c4d", "alice", "desk", os.getpid())
#: Twice the same host, with and without a port and a password; and something that is no host.
RESOURCES = """
lab1:
  NetworkService: {{address: 127.0.0.1, port: {port}, username: {user}, password: hush}}
lab2:
  NetworkService: {{address: 127.0.0.1, username: {user}}}
lab3:
  NetworkSerialPort: {{host: 127.0.0.1, port: 1}}
"""

pytestmark = [
    pytest.mark.skipif(
        shutil.which("labgrid-coordinator", path=PATH) is None, reason="labgrid is not installed"
    ),
    pytest.mark.xdist_group("labgrid"),  # one coordinator for all
]


class Coordinator:
    """A running coordinator and an exporter.

    :ivar address: where it listens.
    """

    def __init__(self, directory: Path, model: ModelHost, stack: ExitStack) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        self._directory = directory
        self._stack = stack
        self._start("labgrid-coordinator", "-l", self.address)
        _until(lambda: self.client("places") is not None)
        (directory / "exported.yaml").write_text(RESOURCES.format(port=model.port, user=model.user))
        self._start("labgrid-exporter", "-c", self.address, "-n", "exporter", "exported.yaml")
        _until(lambda: "lab3" in (self.client("resources") or ""))
        for place in ("lab1", "lab2", "lab3"):
            self.client("-p", place, "create")
            self.client("-p", place, "add-match", f"*/{place}/*")

    def _start(self, *command: str) -> None:
        log = self._stack.enter_context((self._directory / f"{command[0]}.log").open("wb"))
        process = subprocess.Popen(
            command, cwd=self._directory, env={**os.environ, "PATH": PATH}, stdout=log, stderr=log
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def client(self, *words: str, user: str = "carol", machine: str = "rack") -> str | None:
        """What labgrid-client says, None when it fails."""
        done = subprocess.run(
            ["labgrid-client", "-x", self.address, *words],
            env={**os.environ, "PATH": PATH, "LG_USERNAME": user, "LG_HOSTNAME": machine},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        return None if done.returncode else done.stdout

    def holder(self, place: str) -> str:
        """Who has a place: "machine/user", or nobody."""
        shown = self.client("-p", place, "show") or ""
        return shown.partition("  acquired: ")[2].partition("\n")[0]

    def host(self, place: str, wait_s: float = 0) -> LabHost:
        """The lab entry of a host that has this place."""
        return LabHost(
            name="lab1",
            file=None,
            address=f"labgrid:{place}",
            user="",
            labgrid=Labgrid(coordinator=self.address),
            lease_wait_s=wait_s,
        )


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelHost]:
    """A model host that no other test has the lease of."""
    with ModelHost.start() as host:
        yield host


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory, model: ModelHost) -> Iterator[Coordinator]:
    """A labgrid of our own."""
    with ExitStack() as stack:
        yield Coordinator(tmp_path_factory.mktemp("labgrid"), model, stack)


def test_a_place_says_where_the_host_is(coordinator: Coordinator, model: ModelHost) -> None:
    """It is ours in the meantime, under a name that tells the run, and free afterwards."""
    with acquired(coordinator.host("lab1"), TENANT, say_nothing) as service:
        assert service == {"address": "127.0.0.1", "port": model.port, "user": model.user}
        assert coordinator.holder("lab1") == f"desk/alice.1a2b3c4d.{os.getpid()}"
    assert coordinator.holder("lab1") == "None"


def test_a_place_without_a_port(coordinator: Coordinator) -> None:
    """The lab file's port counts then."""
    with acquired(coordinator.host("lab2"), TENANT, say_nothing) as service:
        assert service["port"] == 22


def test_a_place_that_is_no_host(coordinator: Coordinator) -> None:
    """The error says what the place has; it is released."""
    with pytest.raises(HostError, match=r"wanted one resource NetworkService.*got \['NetworkSerialPort'\]"):
        acquired(coordinator.host("lab3"), TENANT, say_nothing).__enter__()
    assert coordinator.holder("lab3") == "None"


def test_no_such_place(coordinator: Coordinator) -> None:
    """What labgrid says is in the error."""
    with pytest.raises(HostError, match="nowhere matches nothing"):
        acquired(coordinator.host("nowhere"), TENANT, say_nothing).__enter__()


def test_no_coordinator() -> None:
    """An error names the address that was tried."""
    host = LabHost("lab1", None, "labgrid:lab1", "", labgrid=Labgrid(coordinator="127.0.0.1:1"))
    with pytest.raises(HostError, match=r"labgrid-client with 127.0.0.1:1: .*Could not connect"):
        acquired(host, TENANT, say_nothing).__enter__()


def test_no_labgrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error says what to install."""
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(HostError, match=r"pip install 'pytest-seves\[labgrid\]'"):
        acquired(LabHost("lab1", None, "labgrid:lab1", ""), TENANT, say_nothing).__enter__()


def test_somebody_else_has_it(coordinator: Coordinator) -> None:
    """Waiting has a limit and names the holder; a place that is released meanwhile is ours."""
    coordinator.client("-p", "lab1", "acquire")
    with pytest.raises(LeaseError, match=r"lab1: place lab1 is held by rack/carol in labgrid, and was not"):
        acquired(coordinator.host("lab1"), TENANT, say_nothing).__enter__()
    said: list[str] = []
    release = threading.Timer(3, coordinator.client, ("-p", "lab1", "release"))
    release.start()
    with acquired(coordinator.host("lab1", wait_s=60), TENANT, said.append):
        assert said == ["lab1: place lab1 is held by rack/carol in labgrid, waiting up to 60 s"]
    release.join()


def test_a_run_that_was_killed(coordinator: Coordinator) -> None:
    """Its place is released, as nobody else would; that of a living run, or of another machine, is not."""
    with subprocess.Popen(["true"]) as ended:
        pass
    dead, alive = f"alice.0f0f0f0f.{ended.pid}", f"alice.0f0f0f0f.{os.getppid()}"
    for user, machine in ((alive, "desk"), (dead, "rack"), (dead.replace("alice", "bob"), "desk")):
        coordinator.client("-p", "lab1", "acquire", user=user, machine=machine)
        with pytest.raises(LeaseError, match=f"held by {machine}/{user}"):
            acquired(coordinator.host("lab1"), TENANT, say_nothing).__enter__()
        coordinator.client("-p", "lab1", "release", user=user, machine=machine)
    coordinator.client("-p", "lab1", "acquire", user=dead, machine="desk")
    with acquired(coordinator.host("lab1"), TENANT, say_nothing):
        assert coordinator.holder("lab1").startswith("desk/alice.1a2b3c4d")


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_run_of_pytest(
    coordinator: Coordinator, model: ModelHost, pytester: pytest.Pytester, workers: list[str]
) -> None:
    """A lab file names the place: tests run on its host, and no worker acquires it a second time."""
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(sev_host, n): assert sev_host.facts.vmm.version\n"
    )
    pytester.path.joinpath("lab").mkdir()
    pytester.path.joinpath("lab/lab1.toml").write_text(
        f'[host]\naddress = "labgrid:lab1"\nhost_key = "{model.host_key}"\nidentity = "{model.identity}"\n'
        f'lease_wait_s = 0\n[firmware]\npath = "{model.firmware}"\n'
        f'[labgrid]\ncoordinator = "{coordinator.address}"\n'
    )
    arguments = ("--sev-host=lab1", "-p", "no:labgrid", *workers)
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=2)
    assert coordinator.holder("lab1") == "None"
    coordinator.client("-p", "lab1", "acquire")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*LeaseError: lab1: place lab1 is held by rack/carol in labgrid*"])
    coordinator.client("-p", "lab1", "release")
