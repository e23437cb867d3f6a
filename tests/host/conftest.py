# SPDX-License-Identifier: GPL-2.0-or-later
"""A real sshd on loopback, with keys of its own and an agent cache of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from pytest_seves.host.inventory import LabHost

_RUN = Path("/run/sshd")


@dataclass(frozen=True)
class Sshd:
    """A running server.

    :ivar directory: its keys, log and configuration; `cache` is XDG_CACHE_HOME of its sessions.
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def identity(self) -> Path:
        """The private key that it accepts."""
        return self.directory / "identity"

    @property
    def host_key(self) -> str:
        """Its public key."""
        return (self.directory / "host_key.pub").read_text().strip()

    @property
    def cache(self) -> Path:
        """The directory that holds the agents."""
        return self.directory / "cache" / "pytest-seves"

    def host(self, **changes: Any) -> LabHost:
        """Its inventory entry."""
        values: dict[str, Any] = {
            "name": "lab1",
            "file": None,
            "address": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity": self.identity,
            "host_key": self.host_key,
            "python": sys.executable,
        }
        return LabHost(**{**values, **changes})

    def connections(self) -> list[int]:
        """A process for each connection."""
        return children(self.process.pid)

    def signal_connections(self, number: int) -> None:
        """Send a signal to all that serves connections."""
        _signal_connections(self.process.pid, number)


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def _signal_connections(listener: int, number: int) -> None:
    """With privilege separation there are two processes for each connection."""
    for monitor in children(listener):
        for pid in (*(pid for pid in children(monitor) if _name(pid) == "sshd"), monitor):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def make_key(path: Path, passphrase: str = "") -> None:
    """A new ed25519 key pair at `path`."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _command(config: Path, within: tuple[str, ...]) -> list[str]:
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or "sshd"
    command = [*within, sshd, "-D", "-e", "-f", str(config)]
    if not within and os.geteuid() == 0 and not _RUN.is_dir():
        # root's sshd wants its empty directory: give it one in a mount namespace of its own
        script = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", script, "sh", *command]
    return command


def _start(config: Path, within: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start the server and wait until it listens; from then on its log goes to the file beside `config`."""
    process = subprocess.Popen(_command(config, within), stderr=subprocess.PIPE)
    assert process.stderr
    seen = b""
    while b"Server listening" not in seen:
        line = process.stderr.readline()
        seen += line
        if not line:
            process.wait()
            pytest.fail(f"sshd does not run: {seen.decode()}")
    threading.Thread(target=_log, args=(process.stderr, config.with_name("log")), daemon=True).start()
    return process


def _log(stderr: IO[bytes], path: Path) -> None:
    with stderr, path.open("ab", buffering=0) as log:
        shutil.copyfileobj(stderr, log)


@pytest.fixture
def start_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    """Start servers; arguments are lines of sshd_config, `within` words to put before the program."""
    with ExitStack() as stack:

        def start(*config: str, within: tuple[str, ...] = ()) -> Sshd:
            directory = tmp_path_factory.mktemp("sshd")
            make_key(directory / "host_key")
            make_key(directory / "identity")
            shutil.copy(directory / "identity.pub", directory / "authorized_keys")
            port = _free_port()
            lines = [
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                f"HostKey {directory}/host_key",
                f"AuthorizedKeysFile {directory}/authorized_keys",
                f"SetEnv XDG_CACHE_HOME={directory}/cache",
                "StrictModes no",
                "UsePAM no",
                "PidFile none",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin prohibit-password",
                *config,
            ]
            (directory / "sshd_config").write_text("\n".join(lines) + "\n")
            process = _start(directory / "sshd_config", within)
            stack.callback(_stop, process)
            return Sshd(directory, port, process)

        yield start


@pytest.fixture
def sshd(start_sshd: Callable[..., Sshd]) -> Sshd:
    """One server with nothing special."""
    return start_sshd()


def _stop(process: subprocess.Popen[bytes]) -> None:
    _signal_connections(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
