# SPDX-License-Identifier: GPL-2.0-or-later
"""A host to change: this machine below an overlay of its own, with sshd in it. It is gone with its sshd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent import changes
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.inventory_provision import Provision
from pytest_seves.host.provision import Provisioning
from tests.host.conftest import Sshd, children

#: The last argument is sshd's configuration, in a directory that an ordinary user is to reach. bash reads
#: root's .bashrc in a session without a terminal, and some wait for locks of other sessions on this machine.
_SCRIPT = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root /mnt/modules
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for each in proc sys; do mount --rbind /$each /mnt/root/$each; done
mount -t tmpfs -o mode=755 tmpfs /mnt/root/dev
for each in null zero full random urandom tty; do
    touch /mnt/root/dev/$each
    mount --bind /dev/$each /mnt/root/dev/$each
done
ln -s /proc/self/fd /mnt/root/dev/fd
mount --bind /mnt/modules /mnt/root/sys/module
mount -t tmpfs -o mode=755 tmpfs /mnt/root/opt
mount -t tmpfs -o mode=755,size=256k tmpfs /mnt/root/srv
mkdir -p /mnt/root/run/sshd /mnt/root/etc/modprobe.d
config=${!#}
directory=/mnt/root$(dirname "$config")
mkdir -m 1777 "$directory/cache"
until [ "$directory" = /mnt/root ]; do chmod go+rx "$directory"; directory=$(dirname "$directory"); done
chmod go+rx /mnt/root/root
rm -f /mnt/root/root/.bashrc
chroot /mnt/root useradd -m -s /bin/sh seves
chroot /mnt/root usermod -p '*' seves
chroot /mnt/root groupadd -f kvm
install -m 4755 "$(command -v setpriv)" /mnt/root/usr/local/bin/become
exec chroot /mnt/root "$@"
"""
#: A sudo rule of that host: the program is setuid root.
RULE = ("/usr/local/bin/become", "--reuid=0", "--regid=0", "--clear-groups", "--reset-env")


@dataclass(frozen=True)
class Throwaway:
    """The host, with the user `seves` and the group `kvm`."""

    sshd: Sshd

    @property
    def root(self) -> Path:
        """Its file system, as this machine sees it."""
        return Path(f"/proc/{self.sshd.process.pid}/root")

    def entry(self, user: str = "root", sudo: tuple[str, ...] = (), **declared: Any) -> LabHost:
        """Its lab entry, with what [provision] declares."""
        return self.sshd.host(user=user, sudo=sudo, provision=Provision(**declared))

    def state(self) -> dict[str, Any]:
        """Everything that provisioning may change, without the backups that the host's own tools make."""
        tops = ("opt", "srv", "var/lib/pytest-seves")
        states = {name: changes.state(str(self.root / name)) for name in tops}
        for path in (self.root / "etc").rglob("*"):
            if not path.name.endswith("-") and path.name not in (".pwd.lock", "ld.so.cache"):
                states[str(path)] = (
                    {"mode": path.lstat().st_mode} if path.is_dir() else changes.state(str(path))
                )
        for path in (self.root / "home/seves").rglob("*"):
            if ".cache" not in path.parts:
                states[str(path)] = {"mode": path.lstat().st_mode}
        return states

    def agents(self) -> list[int]:
        """The agents that run on it."""
        found = []
        for connection in self.sshd.connections():
            found += [pid for session in children(connection) for pid in (session, *children(session))]
        return [pid for pid in found if b"agent-" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def module(self, name: str, users: int = 0, **parameters: str) -> None:
        """Show a module as loaded with these parameters."""
        folder = self.root / "sys/module" / name
        (folder / "parameters").mkdir(parents=True, exist_ok=True)
        (folder / "refcnt").write_text(f"{users}\n")
        for key, value in parameters.items():
            (folder / "parameters" / key).write_text(f"{value}\n")


@pytest.fixture
def throwaway(start_sshd: Callable[..., Sshd]) -> Throwaway:
    """A host that may be changed."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces for this user")
    return Throwaway(start_sshd(within=("unshare", "-m", "bash", "-c", _SCRIPT, "bash")))


def provision(entry: LabHost, mode: str, say: Callable[[str], None] | None = None) -> tuple[bool, str]:
    """Run one mode; whether all is as wanted, and what it printed."""
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        if say:
            say(line)

    with Provisioning(entry, hear) as work:
        done = work.run(mode)
    return done, "\n".join(lines)
