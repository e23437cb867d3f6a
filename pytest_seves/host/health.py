# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a host is still what the run began with: looks at it, compared. Pure but for :class:`Health`.

What a host does not tell (None, or a reason instead of a value) is never a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import (
    AgentRemoteError,
    ClockJumped,
    DiskFull,
    FirmwareStateLost,
    HostError,
    HostFault,
    HostRebooted,
    KernelOops,
    NoFreeAsids,
)
from pytest_seves.spec import sev

if TYPE_CHECKING:
    from .client import AgentClient

Look = Mapping[str, Any]

#: An agent's directory with less than this is full: a launch writes some kilobytes there.
LEAST_FREE = 1 << 20
#: How far the wall clock may run from the monotonic one between two looks; NTP slews 0.5 ms a second.
CLOCK_S = 2.0
_ALONE_S = 120.0
_LOOK_S = 15.0


class Health:
    """The looks at one host.

    :ivar first: the first one, which the others are compared with.
    :ivar last: the last one.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self.first: Look | None = None
        self.last: Look | None = None

    def look(self, client: AgentClient) -> HostFault | None:
        """Look at the host, one round trip; the fault it has, if any.

        :raise HostError: it does not answer.
        """
        now = self._ask(client)
        if exhausted(now):  # by guests of another worker, perhaps: look while none of ours runs
            client.ahead.settle(_ALONE_S)
            try:
                client.call("alone.begin", {"timeout_s": _ALONE_S})
            except AgentRemoteError as error:
                if error.kind != "Busy":
                    raise
                return NoFreeAsids(f"no launch of ours ended in time: {error.message}", host=self._host)
            try:
                now = self._ask(client)
            finally:
                client.call("alone.end")
        found = next(faults(self._host, self.first or now, self.last or now, now), None)
        self.first, self.last = self.first or now, now
        return found

    def _ask(self, client: AgentClient) -> Look:
        log = self.last["log"] if self.last else {}
        return client.call("health", {"since": log["next"]} if "next" in log else {}, timeout_s=_LOOK_S)


def faults(host: str, first: Look, last: Look, now: Look) -> Iterator[HostFault]:
    """What is wrong `now` with a host that was looked at before: at `first`, and at `last`; worst first."""
    if _told(first, "boot_id") and _told(now, "boot_id") and first["boot_id"] != now["boot_id"]:
        yield HostRebooted(f"boot id {now['boot_id']}, was {first['boot_id']}", host=host)
        return  # the rest follows from it
    if alarms := now["log"].get("alarms"):
        more = f" (and {len(alarms) - 1} more)" if alarms[1:] else ""
        yield KernelOops(f"its log says: {alarms[0]!r}{more}", host=host, lines=alarms)
    if lost := _firmware(first["platform_status"], now["platform_status"]):
        yield FirmwareStateLost(lost, host=host)
    for path, space in now["space"].items():
        if "free" in space and (space["free"] < LEAST_FREE or space["files"] == 0):
            what = f"{path}: {space['free']} bytes and {space['files']} files are free"
            yield DiskFull(f"{what}; wanted {LEAST_FREE} bytes", host=host)
    if exhausted(now):
        counts = now["misc"]
        text = f"{counts['current']['sev_es']} of {counts['capacity']['sev_es']} are in use by others"
        yield NoFreeAsids(text, host=host)
    jump_s = (_offset(now) - _offset(last)) / 1e9
    if abs(jump_s) > CLOCK_S:
        yield ClockJumped(f"its wall clock moved by {jump_s:+.1f} s against the monotonic one", host=host)


def exhausted(now: Look) -> bool:
    """Whether the host says that no ASID is free for a SEV-ES guest."""
    capacity, current = now["misc"].get("capacity") or {}, now["misc"].get("current") or {}
    return "sev_es" in current and 0 < capacity.get("sev_es", 0) <= current["sev_es"]


def unread(now: Look) -> str | None:
    """Why the kernel's log could not be read, if so."""
    log = now["log"]
    return None if "next" in log else f"the kernel's log was not read: {log.get('errno') or log['error']}"


def describe(error: HostError) -> str:
    """`class: what was seen`, without the name of the host."""
    return f"{error.fault}: {error.message.removeprefix(f'{error.host}: ')}"


def _told(look: Look, name: str) -> bool:
    return isinstance(look[name], str)


def _offset(look: Look) -> int:
    return int(look["realtime_ns"]) - int(look["monotonic_ns"])


def _firmware(first: Look, now: Look) -> str | None:
    if "hex" not in first:
        return None
    if "hex" not in now:
        return f"SEV_PLATFORM_STATUS answered before, now it fails: {now.get('errno') or now.get('error')}"
    was, is_ = (sev.SEV_USER_DATA_STATUS.decode(bytes.fromhex(told["hex"])) for told in (first, now))
    if is_["state"] == sev.PlatformState.UNINIT != was["state"]:
        return f"platform state UNINIT, was {sev.PlatformState(was['state']).name}"
    names = ("api_major", "api_minor", "build")
    before, after = (tuple(told[name] for name in names) for told in (was, is_))
    if before != after:
        return "API {}.{} build {}, was API {}.{} build {}".format(*after, *before)
    return None
