# SPDX-License-Identifier: GPL-2.0-or-later
"""An SSH server on the way to a host: where it is, who we are there, and by which keys it is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_seves.host.hostkeys import Pins, pins_for
from pytest_seves.host.inventory import LabHost


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way to `host`.

    :param what: its part, for messages: ``host`` or ``jump host``.
    """

    host: str
    what: str
    address: str
    port: int
    user: str
    identity: Path | None
    pins: Pins

    @property
    def where(self) -> str:
        """What to call it in a message."""
        return f"{self.what} {self.address}:{self.port}"


def target_hop(host: LabHost) -> Hop:
    """The host itself."""
    pins = pins_for(host, host.host_key, host.address, host.port, "[host]")
    return Hop(host.name, "host", host.address, host.port, host.user, host.identity, pins)


def jump_hop(host: LabHost) -> Hop | None:
    """The jump host, None where the lab file names none; the user is the host's unless it has its own."""
    jump = host.jump
    if jump is None:
        return None
    pins = pins_for(host, jump.host_key, jump.address, jump.port, "[host.jump]")
    return Hop(host.name, "jump host", jump.address, jump.port, jump.user or host.user, jump.identity, pins)
