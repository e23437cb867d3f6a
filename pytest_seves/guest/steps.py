# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a running guest through its VMM, as part of a :class:`~pytest_seves.guest.spec.GuestSpec`.

Whatever comes of a step is evidence: an answer, an error, or a VMM that ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Qmp:
    """A QMP command.

    :param arguments: a JSON object.
    :param until: names of QMP events; the step ends with the first of them, or with the VMM.
    """

    command: str
    arguments: str = "{}"
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """QMP commands in order, `times` times; many are under way at once, the VMM answers them in order."""

    steps: tuple[Qmp, ...]
    times: int


@dataclass(frozen=True)
class Gdb:
    """Packets to the VMM's gdbstub, which is started for them; attaching stops the guest."""

    packets: tuple[str, ...]


@dataclass(frozen=True)
class Console:
    """Wait until the serial console has said something, or until the VMM has ended.

    :param pattern: a regular expression.
    :param fresh: what was said before this step does not count.
    """

    pattern: str
    timeout_s: float
    fresh: bool


@dataclass(frozen=True)
class Type:
    """Type on the serial console, and do not wait for what comes of it."""

    text: str


@dataclass(frozen=True)
class Await:
    """Wait for a QMP event that came, or comes, since the conversation began, or until the VMM has ended."""

    events: tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True)
class Dump:
    """The VMM's own dump of `length` bytes of guest-physical memory from `begin`, both of whole pages."""

    begin: int
    length: int


Step = Qmp | Repeat | Gdb | Console | Type | Await | Dump


def qmp(command: str, *, until: tuple[str, ...] = (), **arguments: Any) -> Qmp:
    """A QMP command; underscores in names of arguments stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return Qmp(command, json.dumps(named, sort_keys=True), until)


def hmp(line: str) -> Qmp:
    """A line of the human monitor."""
    return qmp("human-monitor-command", command_line=line)


def repeat(times: int, *steps: Qmp) -> Repeat:
    """`steps`, `times` times."""
    return Repeat(steps, times)


def console(pattern: str, *, timeout_s: float = 30.0, fresh: bool = False) -> Console:
    """Wait for something on the serial console."""
    return Console(pattern, timeout_s, fresh)


def typed(line: str) -> Type:
    """A line for whoever reads the serial console, and the Enter key."""
    return Type(f"{line}\r")


def event(*names: str, timeout_s: float = 10.0) -> Await:
    """Wait for one of these QMP events."""
    return Await(names, timeout_s)


def dump(begin: int, length: int = 0x1000) -> Dump:
    """What dump-guest-memory writes of a piece of memory."""
    return Dump(begin, length)


def gdb(*packets: str) -> Gdb:
    """A debugger that attaches, sends `packets` and leaves."""
    return Gdb(packets)
