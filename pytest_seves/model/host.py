# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and stop a model host: a real sshd on loopback whose sessions live above modelled hardware."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from . import session_supervisor, sshd
from .cpu.trace import LOG_NAME as TRACE_NAME
from .platform import LOG_NAME
from .profiles import resolve

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")

ModelUnavailable = sshd.ModelUnavailable


class ModelHost:
    """A running model host; a context manager that leaves no process behind.

    :ivar address, port, user: where and as whom to connect.
    :ivar identity: private key of the only client that is let in.
    :ivar host_key: the server's public key, ``ssh-ed25519 AAAA...``, to pin.
    :ivar firmware: the machine's own OVMF image.
    :ivar directory: logs (sshd.log, model.log) and the firmware's command log.
    """

    def __init__(self, profile: str, directory: Path, keep: bool) -> None:
        self.profile = profile
        self.directory = directory
        self.address = "127.0.0.1"
        self.identity = directory / "client_key"
        self.firmware = _FIRMWARE
        self.host_key = sshd.generate_key(directory / "host_key")
        sshd.generate_key(self.identity)
        self._process = _start_machine(profile, directory, keep)
        try:
            told = self._first_line()
        except BaseException:
            self.close()
            raise
        self.port = int(told["port"])
        self.user = str(told["user"])

    @classmethod
    def start(cls, profile: str = "linux-6.1", directory: Path | None = None) -> ModelHost:
        """Start a host and wait until it accepts connections.

        :param profile: name, with settings if wanted: ``linux-6.1:es_asids=2,sev_es=N``.
        :param directory: keep keys and logs here; a private temporary directory, removed at the end, if None.
        :raise ModelUnavailable: what this machine lacks.
        :raise profiles.UnknownProfile: no such profile.
        """
        resolve(profile)
        sshd.check_user()
        if directory is None:
            return cls(profile, Path(tempfile.mkdtemp(prefix="seves-model-")), keep=False)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("host_key", "client_key", "platform.sock"):
            for path in (directory / name, directory / f"{name}.pub"):
                path.unlink(missing_ok=True)
        return cls(profile, directory.resolve(), keep=True)

    @property
    def firmware_log(self) -> Path:
        """Commands that reached the modelled firmware, one JSON object a line."""
        return self.directory / LOG_NAME

    @property
    def log(self) -> Path:
        """What broke in the model itself; empty while nothing did."""
        return self.directory / session_supervisor.LOG_NAME

    @property
    def guest_log(self) -> Path:
        """What each guest did, one JSON object a line, written when its VM is gone."""
        return self.directory / TRACE_NAME

    @property
    def pid(self) -> int:
        """The process all others of this host descend from."""
        return self._process.pid

    def close(self) -> None:
        """End every session and process of the host. Idempotent."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_line(self) -> dict[str, int | str]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        told = json.loads(line) if line else {"error": f"no answer within {_START_TIMEOUT_S:.0f} s"}
        if "error" in told:
            raise ModelUnavailable(f"{told['error']} (logs: {self.directory})")
        return told


def _start_machine(profile: str, directory: Path, keep: bool) -> subprocess.Popen[bytes]:
    """The machine's process; it ends when its standard input does, or when we do."""
    package_parent = str(Path(__file__).resolve().parents[2])
    places = [package_parent, *(os.path.abspath(entry) for entry in sys.path if entry)]
    start = f"import sys; sys.path[:] = {places!r}; from pytest_seves.model.machine import main; main()"
    argv = [sys.executable, "-I", "-S", "-c", start, "--directory", str(directory)]
    argv += ["--profile", profile]
    if keep:
        argv.append("--keep")
    # A session of its own: Ctrl-C is the controller's to handle, and reaches us as the end of our input.
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
