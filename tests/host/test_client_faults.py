# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong between client and agent: noise, a missing or old Python, full caches, sudden deaths."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import (
    AgentDied,
    AgentError,
    AgentGarbage,
    ConnectionLost,
    HostError,
    NoPython,
)
from pytest_seves.host.agentzip import agent_zip
from pytest_seves.host.client import AgentClient, open_client

Sshd = Any

#: A VMM that is not talked to and has a child; both say that they are there, and live for ever.
FAMILY = "import os, sys, time\nos.close(3)\nos.fork()\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(600)"
QUIET = {"questions": [], "paused": False, "paused_steps": [], "steps": [], "ends": "never"}


def script(path: Path, text: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def start_family(client: AgentClient, fifo: Path) -> list[int]:
    """Launch :data:`FAMILY`; pidfds of the recorder, the VMM and its child."""
    os.mkfifo(fifo)
    told = os.open(fifo, os.O_RDWR)
    argv = [sys.executable, "-c", FAMILY, str(fifo)]
    client.call("observe", {"argv": argv, "script": QUIET, "mode": "stop", "timeout_s": 600})
    said = b""
    while len(said) < 2:
        assert select.select([told], [], [], 20)[0]
        said += os.read(told, 2)
    os.close(told)
    members = descendants(client.hello["pid"])
    assert len(members) == 3
    return [os.pidfd_open(pid) for pid in members]


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
    return found


def all_gone(pidfds: list[int], timeout_s: float = 10) -> bool:
    """Whether all those processes end in time."""
    gone = all(select.select([pidfd], [], [], timeout_s)[0] for pidfd in pidfds)
    for pidfd in pidfds:
        os.close(pidfd)
    return gone


# Before the agent runs


def test_noise_on_the_channel(start_sshd: Callable[..., Sshd]) -> None:
    """A forced command's or a profile's words are shown, and the silence they should keep is named."""
    server = start_sshd("ForceCommand echo 'Welcome to lab1'; echo '5 updates'; cat >/dev/null")
    with pytest.raises(AgentGarbage, match=r"Welcome to lab1\\n5 updates.*print on login"):
        open_client(server.host())


def test_noise_before_the_agent(start_sshd: Callable[..., Sshd]) -> None:
    """Noise that is followed by a working agent is refused, too."""
    server = start_sshd('ForceCommand echo motd; eval "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(AgentGarbage, match="motd"):
        open_client(server.host())


def test_silent_forced_command(start_sshd: Callable[..., Sshd]) -> None:
    """A login that just ends is called that, with what it said on stderr."""
    server = start_sshd("ForceCommand echo 'account expired' >&2; exit 9")
    with pytest.raises(AgentDied, match=r"before it greeted, with exit status 9.*account expired"):
        open_client(server.host())


def test_no_python(sshd: Sshd) -> None:
    """A Python that is not there: its name, and what to do."""
    with pytest.raises(NoPython, match=r"/nonexistent/python3.*status 127.*`python` in the lab file"):
        open_client(sshd.host(python="/nonexistent/python3"))


def test_python_that_cannot_be_executed(sshd: Sshd, tmp_path: Path) -> None:
    """A file without the x bit is no Python."""
    (tmp_path / "python3").write_text("")
    with pytest.raises(NoPython, match="126"):
        open_client(sshd.host(python=str(tmp_path / "python3")))


def test_old_python(sshd: Sshd, tmp_path: Path) -> None:
    """A Python before 3.9 is named with its version, by itself."""
    fake = 'exec {} -c "import sys; sys.version_info = (3, 6, 8); $4" "$5"'
    python = script(tmp_path / "python3", fake.format(sys.executable))
    with pytest.raises(NoPython, match=r"is Python 3\.6; the agent needs 3\.9"):
        open_client(sshd.host(python=python))


def test_agent_that_cannot_start(sshd: Sshd, tmp_path: Path) -> None:
    """The last words on stderr are in the message."""
    python = script(tmp_path / "python3", "echo 'Illegal instruction' >&2; exit 132")
    with pytest.raises(AgentDied, match=r"status 132.*Illegal instruction"):
        open_client(sshd.host(python=python))


def test_sudo_that_wants_a_password(sshd: Sshd, tmp_path: Path) -> None:
    """What sudo says is in the message."""
    sudo = script(tmp_path / "sudo", "echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(AgentDied, match="a password is required"):
        open_client(sshd.host(sudo=(sudo, "-n")))


def test_sudo(sshd: Sshd, tmp_path: Path) -> None:
    """The words of the inventory stand before the command, each as it is."""
    sudo = script(tmp_path / "sudo", 'test "$1 $2" = "-n --user=a b" || exit 9; shift 2; exec "$@"')
    with open_client(sshd.host(sudo=(sudo, "-n", "--user=a b"))) as client:
        assert client.call("exec", {"argv": ["true"], "timeout_s": 10})["status"] == 0


# The cache


def test_uploaded_once(sshd: Sshd) -> None:
    """The first start stores the agent, the next one finds it."""
    open_client(sshd.host()).close()
    (stored,) = sshd.cache.iterdir()
    assert stored.name == f"agent-{agent_zip().sha256}.pyz"
    assert stored.read_bytes() == agent_zip().data
    assert stat.S_IMODE(sshd.cache.stat().st_mode) == 0o700
    before = stored.stat()
    open_client(sshd.host()).close()
    assert stored.stat().st_mtime_ns == before.st_mtime_ns
    assert stored.stat().st_ino == before.st_ino


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "world-writable", "symlink", "directory"])
def test_damaged_cache(sshd: Sshd, tmp_path: Path, damage: str) -> None:
    """What is not exactly the agent, ours alone, is replaced and never run."""
    open_client(sshd.host()).close()
    (stored,) = sshd.cache.iterdir()
    good = stored.read_bytes()
    if damage == "world-writable":
        stored.chmod(0o666)
    elif damage == "symlink":
        (tmp_path / "elsewhere").write_bytes(good)
        stored.unlink()
        stored.symlink_to(tmp_path / "elsewhere")
    elif damage == "directory":
        stored.unlink()
        stored.mkdir()
        with pytest.raises(AgentError, match="directory"):
            open_client(sshd.host())
        return
    else:
        bad = {"truncate": good[:-1], "flip": good[:-1] + bytes([good[-1] ^ 1]), "empty": b""}[damage]
        stored.write_bytes(bad)
    open_client(sshd.host()).close()
    assert stored.read_bytes() == good
    assert stat.S_ISREG(stored.lstat().st_mode)
    assert stat.S_IMODE(stored.stat().st_mode) & 0o022 == 0


def test_cache_that_is_no_directory(sshd: Sshd) -> None:
    """A file where the cache should be: its path is in the message."""
    sshd.cache.parent.mkdir()
    sshd.cache.write_text("")
    with pytest.raises(AgentError, match=f"{sshd.cache}.*XDG_CACHE_HOME"):
        open_client(sshd.host())


def test_cache_without_space(sshd: Sshd, tmp_path: Path) -> None:
    """An agent that cannot be written leaves no partial file, and says why."""
    python = script(tmp_path / "python3", f'ulimit -f 8; exec {sys.executable} "$@"')
    with pytest.raises(AgentError, match=f"{sshd.cache}.*File too large"):
        open_client(sshd.host(python=python))
    assert list(sshd.cache.iterdir()) == []


def test_two_first_starts_at_once(sshd: Sshd) -> None:
    """Workers that start together do not disturb each other's upload."""
    problems: list[HostError] = []

    def start(port: int) -> None:
        try:
            open_client(sshd.host(name=f"worker{port}")).close()
        except HostError as error:
            problems.append(error)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [path.name for path in sshd.cache.iterdir()] == [f"agent-{agent_zip().sha256}.pyz"]


# While it runs


def test_agent_killed_during_a_launch(sshd: Sshd, tmp_path: Path) -> None:
    """SIGKILL of the agent takes recorder, VMM and its children along; callers learn of it."""
    with open_client(sshd.host()) as client:
        family = start_family(client, tmp_path / "fifo")
        os.kill(client.hello["pid"], signal.SIGKILL)
        with pytest.raises(AgentDied, match="while it was needed"):
            client.call("wait", {"launch": 1, "timeout_s": 20})
        with pytest.raises(AgentDied):
            client.call("facts")
    assert all_gone(family)


def test_client_closed_during_a_launch(sshd: Sshd, tmp_path: Path) -> None:
    """Closing the client ends everything before it returns."""
    client = open_client(sshd.host())
    family = start_family(client, tmp_path / "fifo")
    client.close()
    assert all_gone(family, 0)


def test_connection_dropped_during_a_launch(sshd: Sshd, tmp_path: Path) -> None:
    """A dropped connection is called that, fails every call under way and leaves nothing on the host."""
    with open_client(sshd.host()) as client:
        family = start_family(client, tmp_path / "fifo")
        timer = threading.Timer(0.3, sshd.signal_connections, (signal.SIGKILL,))
        timer.start()
        with pytest.raises(ConnectionLost, match="closed the connection or it broke"):
            client.call("wait", {"launch": 1, "timeout_s": 20})
    assert all_gone(family)


def test_a_new_connection_after_a_lost_one(sshd: Sshd) -> None:
    """A lost connection is not handed out again."""
    with open_client(sshd.host()) as client:
        sshd.signal_connections(signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            client.call("exec", {"argv": ["sleep", "60"], "timeout_s": 60})
        with open_client(sshd.host()) as again:
            assert again.call("exec", {"argv": ["true"], "timeout_s": 10})["status"] == 0


def test_agent_that_writes_nonsense(sshd: Sshd) -> None:
    """Something else that gets into the channel later is garbage as well."""
    with open_client(sshd.host()) as client:
        stdout = Path(f"/proc/{client.hello['pid']}/fd/1")
        if stdout.readlink().name.startswith("pipe:"):
            with stdout.open("wb") as channel:
                channel.write(b"Segmentation fault\n")
        else:
            client.call("exec", {"argv": [sys.executable, "-c", inject(client)], "timeout_s": 10})
        with pytest.raises(AgentGarbage, match="Segmentation fault"):
            client.call("exec", {"argv": ["sleep", "60"], "timeout_s": 60})


def inject(client: AgentClient) -> str:
    """A program that writes into the agent's stdout, a socket: pidfd_getfd is the only way in."""
    return (
        "import ctypes, os; libc = ctypes.CDLL(None); "
        f"pidfd = os.pidfd_open({client.hello['pid']}); "
        "fd = libc.syscall(438, pidfd, 1, 0); os.write(fd, b'Segmentation fault\\n')"
    )


def test_console_flood(sshd: Sshd) -> None:
    """50 MiB on the console: both ends are kept, the rest is counted, the VMM is not held up."""
    flood = (
        "import os\nfor n in range(50 * 16):\n"
        "    data = b'%08d' % n * 8192\n    while data:\n        data = data[os.write(4, data):]\n"
    )
    with open_client(sshd.host()) as client:
        argv = [sys.executable, "-c", flood]
        quiet = {**QUIET, "ends": "quit"}
        request = {"argv": argv, "script": quiet, "mode": "stop", "timeout_s": 60}
        result = client.call("observe", request)
    assert result["exit"] == {"status": 0}
    console = result["console"]
    assert console["dropped"] == (49 << 20)
    assert len(console["head"]) < 800_000
    assert len(console["tail"]) < 800_000
