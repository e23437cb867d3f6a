# SPDX-License-Identifier: GPL-2.0-or-later
"""A private OpenSSH server on loopback: keys, configuration, and where its program is."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_NEEDED_BY_ROOT = Path("/run/sshd")


class ModelUnavailable(RuntimeError):
    """The model host cannot run on this machine, or not as this user; the text says what is missing."""


def find(name: str) -> str:
    """Absolute path of an OpenSSH program (sshd insists on one).

    :raise ModelUnavailable: not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin")
    if path is None:
        raise ModelUnavailable(f"model host: {name} not found; install the OpenSSH server and client")
    return path


def check_user() -> str:
    """Name of the user whom sshd will let in: ourselves.

    :raise ModelUnavailable: no account, or one without a login shell.
    """
    try:
        account = pwd.getpwuid(os.getuid())
    except KeyError:
        raise ModelUnavailable(f"model host: user id {os.getuid()} has no account; sshd needs one") from None
    user, shell = account.pw_name, account.pw_shell or "/bin/sh"
    if not os.access(shell, os.X_OK) or os.path.basename(shell) in ("nologin", "false"):
        raise ModelUnavailable(f"model host: user {user} has shell {shell}; run as a user who can log in")
    if os.getuid() == 0 and _locked(user):
        raise ModelUnavailable(
            f"model host: account {user} is locked ('!' in /etc/shadow), and sshd lets nobody into it; "
            f"an impossible password will do instead: usermod -p '*' {user}"
        )
    return user


def _locked(user: str) -> bool:
    """Whether sshd without PAM calls the account locked."""
    try:
        lines = Path("/etc/shadow").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)


def generate_key(path: Path) -> str:
    """Write an ed25519 key pair; returns the public key, ``ssh-ed25519 AAAA...``."""
    command = [find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return " ".join(path.with_suffix(".pub").read_text(encoding="ascii").split()[:2])


def prepare_as_root() -> None:
    """sshd run by root refuses to start without its privilege separation directory."""
    if os.getuid() == 0:
        _NEEDED_BY_ROOT.mkdir(mode=0o755, exist_ok=True)


def session_command(directory: Path, profile: str, encryption_ebx: int) -> str:
    """The ForceCommand: this interpreter on this package, whatever the login shell's environment says."""
    package_parent = str(Path(__file__).resolve().parents[2])
    places = [
        package_parent,
        *(os.path.abspath(entry) for entry in sys.path if entry and entry != package_parent),
    ]
    start = f"import sys; sys.path[:] = {places!r}; from pytest_seves.model.session import main; main()"
    argv = [sys.executable, "-I", "-S", "-c", start, str(directory), profile, str(encryption_ebx)]
    return "exec " + shlex.join(argv)


def write_configuration(directory: Path, port: int, user: str, command: str) -> Path:
    """sshd_config for one user and one key."""
    lines = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": directory / "host_key",
        "AuthorizedKeysFile": directory / "client_key.pub",
        "AllowUsers": user,
        "PermitRootLogin": "yes",
        "AuthenticationMethods": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
        "AllowTcpForwarding": "no",
        "AllowStreamLocalForwarding": "no",
        "AllowAgentForwarding": "no",
        "X11Forwarding": "no",
        "PermitTunnel": "no",
        "PermitUserRC": "no",
        "PrintMotd": "no",
        "PrintLastLog": "no",
        "UseDNS": "no",
        # sshd runs the ForceCommand through the user's shell, whose start-up files (slow ones exist) are for
        # the command itself: the session gives it its real HOME back. Temporary files are this host's own.
        "SetEnv": f"HOME={directory} TMPDIR={directory}",
        "ForceCommand": command,
    }
    path = directory / "sshd_config"
    path.write_text("".join(f"{key} {value}\n" for key, value in lines.items()), encoding="utf-8")
    return path


def argv(configuration: Path) -> Sequence[str]:
    """Foreground, log on standard error."""
    return [find("sshd"), "-D", "-e", "-f", str(configuration)]
