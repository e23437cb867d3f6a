# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing outlives what started it: guests, sessions, and the host itself."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_seves.model import process_tree
from pytest_seves.model.host import ModelHost
from tests.model.driving import Guest, Ssh, qemu_command, ssh_argv

Launch = Callable[..., Guest]
DEADLINE_MS = 20_000


def usage(ssh: Ssh, host: ModelHost) -> str:
    """ASIDs in use, as the host tells."""
    return ssh("cat /sys/fs/cgroup/misc.current", on=host).stdout


def wait_gone(processes: list[int]) -> None:
    """Wait by event until every process has ended."""
    for process in processes:
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        ended = poller.poll(DEADLINE_MS)
        os.close(descriptor)
        assert ended, f"process {process} is still there"


def find(host: ModelHost, name: str) -> list[int]:
    """Processes of a host by their program's name."""
    out = []
    for process in process_tree.descendants(host.pid):
        try:
            if name in Path(f"/proc/{process}/comm").read_text():
                out.append(process)
        except FileNotFoundError:
            continue
    return out


def test_killed_guest_gives_its_asid_back(ssh: Ssh, launch: Launch) -> None:
    """SIGKILL of the VMM frees what its guest held."""
    with ModelHost.start() as host:
        guest = launch(on=host, vcpus=2)
        assert usage(ssh, host) == "sev 0\nsev_es 1\n"
        (qemu,) = find(host, "qemu")
        os.kill(qemu, signal.SIGKILL)
        guest.end()
        assert usage(ssh, host) == "sev 0\nsev_es 0\n"


def test_guests_of_one_session_are_apart(ssh: Ssh, launch: Launch) -> None:
    """Several VMMs side by side, in one session and in two."""
    with ModelHost.start() as host:
        guests = [launch(on=host, vcpus=2) for _ in range(2)]
        assert usage(ssh, host) == "sev 0\nsev_es 2\n"
        handles = {guest("query-sev")["handle"] for guest in guests}
        assert len(handles) == 2
        assert [guest.quit() for guest in guests] == [0, 0]
        side_by_side = " & ".join(f"({one})" for one in (quitting_qemu(),) * 3)
        run = ssh(f"{side_by_side} & wait", on=host)
        assert run.stdout.count('"SHUTDOWN"') == 3
        assert usage(ssh, host) == "sev 0\nsev_es 0\n"


def quitting_qemu() -> str:
    """A QEMU that launches a guest and quits."""
    told = '{"execute":"qmp_capabilities"}{"execute":"quit"}'
    return f"echo '{told}' | ({qemu_command(vcpus=2)})"


def test_dropped_session_leaves_nothing(ssh: Ssh, launch: Launch) -> None:
    """The ssh client dies: its guest, and all it started in the background, go too."""
    with ModelHost.start() as host:
        guest = launch(on=host)
        left = [*find(host, "qemu"), *find(host, "python")[2:]]
        guest.drop()
        wait_gone(left)
        assert usage(ssh, host) == "sev 0\nsev_es 0\n"


def test_background_process_ends_with_its_session(ssh: Ssh) -> None:
    """What a command leaves behind, detached or not, is killed when the command ends."""
    with ModelHost.start() as host:
        run = ssh("setsid sleep 600 > /dev/null 2>&1 & echo $!", on=host)
        assert run.returncode == 0
        wait_gone([int(run.stdout)])


def test_killed_controller_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    """SIGKILL of the controller ends sshd, platform, sessions and guests, and the directory goes."""
    program = (
        "from pytest_seves.model.host import ModelHost\n"
        "import sys, threading\n"
        "host = ModelHost.start()\n"
        "print(host.pid, host.port, host.user, host.directory, host.host_key, flush=True)\n"
        "threading.Event().wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    controller = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert controller.stdout is not None
    pid, port, user, directory, host_key = controller.stdout.readline().split(maxsplit=4)

    class Elsewhere:
        """Another process's host, as far as ssh needs it."""

    other = Elsewhere()
    other.__dict__.update(
        pid=int(pid), port=int(port), user=user, address="127.0.0.1", directory=Path(directory)
    )
    other.__dict__.update(host_key=host_key.strip(), identity=Path(directory) / "client_key")
    launch(on=other)
    everything = [int(pid), *process_tree.descendants(int(pid))]
    assert len(everything) >= 6
    controller.kill()
    controller.wait()
    controller.stdout.close()
    wait_gone(everything)
    assert not Path(directory).exists()


def test_closed_host_leaves_nothing(launch: Launch) -> None:
    """A guest still running does not keep the host from closing."""
    with ModelHost.start() as host:
        launch(on=host)
        everything = [host.pid, *process_tree.descendants(host.pid)]
    wait_gone(everything)
    assert not host.directory.exists()


def test_broken_platform_ends_the_host(ssh: Ssh) -> None:
    """A host without its firmware fails closed: sshd goes too."""
    with ModelHost.start() as host:
        argv = ssh_argv(host, "true")
        everything = [host.pid, *process_tree.descendants(host.pid)]
        platform = next(process for process in find(host, "python") if process != host.pid)
        os.kill(platform, signal.SIGKILL)
        wait_gone(everything)
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 255


@pytest.mark.parametrize("kept", [True, False])
def test_directory_is_removed_unless_given(tmp_path: Path, kept: bool) -> None:
    """A caller's own directory keeps its logs."""
    with ModelHost.start(directory=tmp_path / "host" if kept else None) as host:
        directory = host.directory
    assert (directory / "sshd.log").exists() is kept
