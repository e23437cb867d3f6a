# SPDX-License-Identifier: GPL-2.0-or-later
"""Driving a model host with the system's ssh client, and an unmodified QEMU on it through QMP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from pytest_seves.model import cpuid
from pytest_seves.model.host import ModelHost

QEMU = "qemu-system-x86_64"

#: Run one command on a model host: ``ssh(command, on=host)``.
Ssh = Callable[..., subprocess.CompletedProcess[str]]


def ssh_argv(host: ModelHost, command: str) -> list[str]:
    """The ssh client's command line, host key pinned."""
    known_hosts = host.directory / "known_hosts"
    known_hosts.write_text(f"[{host.address}]:{host.port} {host.host_key}\n")
    options = {
        "UserKnownHostsFile": known_hosts,
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
    }
    pairs = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    where = ["-p", str(host.port), f"{host.user}@{host.address}"]
    return ["ssh", "-F", "none", "-i", str(host.identity), *pairs, *where, command]


def qemu_command(
    *,
    vcpus: int = 1,
    policy: int | None = 5,
    machine: str = "smm=off",
    extra: str = "",
    cpu: str = "EPYC-v3",
    binary: str = QEMU,
    sev_options: str = "",
    firmware: str = "-bios /usr/share/ovmf/OVMF.fd",
) -> str:
    """An unmodified QEMU with QMP on standard input and output; `policy` None is a guest without SEV."""
    sev = ""
    if policy is not None:
        machine += ",confidential-guest-support=sev0"
        c_bit = cpuid.native(0x8000001F)[1] & 0x3F
        sev = f"-object sev-guest,id=sev0,policy={policy:#x},cbitpos={c_bit},reduced-phys-bits=1{sev_options}"
    return (
        f"exec {binary} -nodefaults -display none -no-user-config -accel kvm -machine q35,{machine} {sev} "
        f"-cpu {cpu} -smp {vcpus} -m 128 {firmware} -qmp stdio {extra}"
    )


class Guest:
    """A QEMU under the model, driven over its ssh channel."""

    def __init__(self, host: ModelHost, command: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            ssh_argv(host, command), stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
        )
        self.greeting = self._line()
        if self.greeting:
            self("qmp_capabilities")

    def __call__(self, execute: str, **arguments: Any) -> Any:
        """One QMP command; its return value."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        while answer := self._line():
            if "event" not in answer:
                return answer.get("return", answer.get("error"))
        raise EOFError(self.errors())

    def errors(self) -> str:
        """Standard error, once the process has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def quit(self) -> int:
        """Leave through QMP; ssh's exit status."""
        self("quit")
        return self.end()

    def end(self) -> int:
        """Close the channel and wait."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return self.process.wait(30)

    def drop(self) -> int:
        """End the ssh client, if it has not ended: the model host sees its connection go."""
        self.process.kill()
        return self.end()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}
