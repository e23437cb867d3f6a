# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that holds one model host together: parent of sshd and the platform, and end of everything.

It is a subreaper, so whatever a session leaves behind becomes its child. When the controller closes its
pipe or dies, or sshd or the platform ends, it kills all of its descendants and removes the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path

from . import cpuid, process_tree, seccomp, session_supervisor, sshd
from .cpu import engine
from .platform import Platform
from .profiles import resolve

_BIND_ATTEMPTS = 20
_LISTENING = "Server listening on"
_LOG_NAME = "sshd.log"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start_platform(profile: str, directory: Path) -> int:
    """Fork the platform; it serves when its socket exists, which is before this returns."""
    platform = Platform(resolve(profile), directory)
    process = os.fork()
    if process == 0:
        try:
            seccomp.die_with_parent(signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            platform.serve()
        except Exception:  # noqa: BLE001  the process boundary: into the log, then fail closed
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


class _Sshd:
    """A running sshd whose log we read: it says when it listens."""

    def __init__(self, directory: Path, user: str, command: str) -> None:
        self._log = (directory / _LOG_NAME).open("ab", buffering=0)
        self._pending = b""
        self.port = 0
        for _ in range(_BIND_ATTEMPTS):
            self.port = free_port()
            configuration = sshd.write_configuration(directory, self.port, user, command)
            self.process = subprocess.Popen(
                sshd.argv(configuration),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: seccomp.die_with_parent(signal.SIGKILL),
            )
            text = self._wait_until_listening()
            if text is None:
                return
            self.process.wait()
            if "Address already in use" not in text:
                raise sshd.ModelUnavailable(f"model host: sshd did not start: {text.strip()}")
        raise sshd.ModelUnavailable(f"model host: no free loopback port in {_BIND_ATTEMPTS} attempts")

    @property
    def output(self) -> int:
        """Descriptor of its log."""
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def drain(self) -> bytes:
        """Copy what it has logged since to the log file; empty at its end."""
        data = os.read(self.output, 65536)
        self._log.write(data)
        return data

    def _wait_until_listening(self) -> str | None:
        text = b""
        while data := self.drain():
            text += data
            if _LISTENING.encode() in text:
                return None
        return text.decode(errors="replace")


def _run(options: argparse.Namespace, wakeup: socket.socket) -> None:
    directory: Path = options.directory
    user = sshd.check_user()
    sshd.prepare_as_root()
    if resolve(options.profile).execute:
        engine.check()
    (directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    (directory / "kmsg").write_text(f"5,0,0,-;Linux version {resolve(options.profile).release}\n")
    ebx = cpuid.published_encryption_ebx()
    controller = os.pidfd_open(os.getppid())
    platform = _start_platform(options.profile, directory)
    server = _Sshd(directory, user, sshd.session_command(directory, options.profile, ebx))
    print(json.dumps({"port": server.port, "user": user}), flush=True)
    poller = select.poll()
    for descriptor in (0, controller, server.output, wakeup.fileno()):
        poller.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == server.output:
                if not server.drain():
                    return
            elif descriptor == wakeup.fileno():
                wakeup.recv(64)
                if _reap(platform):
                    return
            else:
                return


def _reap(platform: int) -> bool:
    """Collect dead children; True when the platform was among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            process, _ = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return False
            if process == platform:
                return True
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; prints one JSON line when the host is up, or {"error": ...}."""
    parser = argparse.ArgumentParser(prog="model machine")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--keep", action="store_true", help="leave the directory when done")
    options = parser.parse_args(arguments)
    ours, wakeup = socket.socketpair()
    ours.setblocking(False)
    wakeup.setblocking(False)
    seccomp.adopt_orphans()
    signal.set_wakeup_fd(ours.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(
        options.directory / session_supervisor.LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    os.dup2(log, 2)
    try:
        _run(options, wakeup)
    except (sshd.ModelUnavailable, engine.EngineUnavailable, OSError, subprocess.CalledProcessError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
    finally:
        process_tree.end_descendants()
        if not options.keep:
            shutil.rmtree(options.directory, ignore_errors=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
