# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is left running for a person to look at (`--sev-keep-failed`)."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from datetime import timedelta

from pytest_seves.host.inventory import LabHost


@dataclass(frozen=True)
class Kept:
    """A guest that runs on.

    :ivar number: of the launch, on the agent.
    :ivar qmp, hmp: paths of its monitors' sockets on the host.
    :ivar deadline: when it is killed, on the monotonic clock.
    :ivar phase: where a VMM that did not play along stands; empty when the guest runs.
    """

    entry: LabHost
    number: int
    qmp: str
    hmp: str
    deadline: float
    phase: str

    def how_to_attach(self) -> str:
        """Commands for a person, one a line."""
        if self.phase:
            return f"launched again, its VMM did not come further than {self.phase}: nothing to attach to"
        login = ["ssh", "-t", "-p", str(self.entry.port)]
        if self.entry.identity:
            login += ["-i", str(self.entry.identity)]
        if self.entry.jump:
            login += ["-J", f"{self.entry.jump.user}@{self.entry.jump.address}:{self.entry.jump.port}"]
        login.append(f"{self.entry.user}@{self.entry.address}")
        root = [*self.entry.sudo] if self.entry.sudo else []
        commands = {
            "HMP": ["socat", "-,raw,echo=0,escape=0x1d", f"UNIX-CONNECT:{self.hmp}"],
            "QMP": ["socat", "-", f"UNIX-CONNECT:{self.qmp}"],
        }
        left = timedelta(seconds=round(max(self.deadline - time.monotonic(), 0)))
        lines = [f"its guest was launched again and runs for {left} h:m:s; Ctrl-C ends it now"]
        lines += [f"{name}: {shlex.join(login)} {shlex.join([*root, *c])}" for name, c in commands.items()]
        return "\n".join(lines)
