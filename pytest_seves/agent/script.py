# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be said to a VMM during a launch, as it comes from the controller, checked.

``{"questions": [command], "paused": bool, "paused_steps": [step], "steps": [step], "ends": word}``. A command
is ``{"do": "qmp", "command", "arguments", "until": [event]}``; further steps are ``repeat`` with ``commands``
and ``times``, ``gdb`` with ``packets``, ``console`` with ``pattern``, ``timeout_s`` and ``fresh``, ``type``
with ``text``, ``await`` with ``events`` and ``timeout_s``, ``dump`` with ``begin`` and ``length``.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Iterator, Tuple, Union

QUIT = "quit"
NEVER = "never"
ENDS = (QUIT, "SIGTERM", "SIGKILL", NEVER)
#: Far less than what a socket takes at once.
MAX_TYPED = 256


@dataclass(frozen=True)
class Command:
    """A QMP command; with `until` it ends with the first of these events, or with the VMM."""

    name: str
    arguments: Dict[str, Any]
    until: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """Commands in order, `times` times; many are under way at once."""

    commands: Tuple[Command, ...]
    times: int


@dataclass(frozen=True)
class Gdb:
    """Packets to the gdbstub on the VMM's socket for it."""

    packets: Tuple[str, ...]


@dataclass(frozen=True)
class Console:
    """Wait until the serial console has said something; what it said before does not count if `fresh`."""

    pattern: re.Pattern[bytes]
    timeout_s: float
    fresh: bool


@dataclass(frozen=True)
class Type:
    """Text for whoever reads the serial console."""

    text: bytes


@dataclass(frozen=True)
class Await:
    """Wait for an event that came, or comes, since the conversation began."""

    events: Tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True)
class Dump:
    """The VMM's own dump of a piece of guest-physical memory."""

    begin: int
    length: int


Step = Union[Command, Repeat, Gdb, Console, Type, Await, Dump]


@dataclass(frozen=True)
class Script:
    """One launch's.

    :ivar questions: asked before it runs, when it was started paused, and while it runs.
    :ivar ends: one of :data:`ENDS`.
    """

    questions: Tuple[Command, ...]
    paused: bool
    paused_steps: Tuple[Step, ...]
    steps: Tuple[Step, ...]
    ends: str

    @property
    def awaited(self) -> FrozenSet[str]:
        """Names of all events that a step waits for."""
        return frozenset(name for step in (*self.paused_steps, *self.steps) for name in _awaited(step))

    @property
    def signal(self) -> int:
        """The signal that ends it; 0 for none."""
        return 0 if self.ends in (QUIT, NEVER) else int(signal.Signals[self.ends])


def _awaited(step: Step) -> Iterator[str]:
    if isinstance(step, Command):
        yield from step.until
    elif isinstance(step, Await):
        yield from step.events
    elif isinstance(step, Repeat):
        for command in step.commands:
            yield from command.until


def load(written: Any) -> Script:
    """Check it.

    :raise ValueError: names what makes no sense.
    """
    try:
        script = Script(
            tuple(map(_command, written["questions"])),
            _a(bool, written["paused"]),
            tuple(map(_step, written["paused_steps"])),
            tuple(map(_step, written["steps"])),
            _a(str, written["ends"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"script {str(written)[:200]}: makes no sense: {error!r}") from error
    if script.ends not in ENDS:
        raise ValueError(f"script: ends: wanted one of {', '.join(ENDS)}, got {script.ends!r}")
    if sum(isinstance(step, Gdb) for step in (*script.paused_steps, *script.steps)) > 1:
        raise ValueError("script: a debugger attaches once: wanted one step with packets at most")
    return script


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"wanted {kind.__name__}, got {value!r}")
    return value


def _seconds(value: Any) -> Any:
    seconds = value if type(value) is int else _a(float, value)
    if not 0 <= seconds < 1e6:
        raise ValueError(f"script: timeout_s {value!r}: wanted a number of seconds")
    return seconds


def _texts(values: Any) -> Tuple[str, ...]:
    return tuple(_a(str, value) for value in _a(list, values))


def _command(step: Dict[str, Any]) -> Command:
    return Command(_a(str, step["command"]), _a(dict, step["arguments"]), _texts(step["until"]))


def _repeat(step: Dict[str, Any]) -> Repeat:
    return Repeat(tuple(map(_command, step["commands"])), _a(int, step["times"]))


def _gdb(step: Dict[str, Any]) -> Gdb:
    packets = _texts(step["packets"])
    if not all(packet.isascii() for packet in packets):
        raise ValueError(f"script: packets {packets!r}: wanted ASCII")
    return Gdb(packets)


def _console(step: Dict[str, Any]) -> Console:
    pattern = _a(str, step["pattern"])
    try:
        compiled = re.compile(pattern.encode())
    except re.error as error:
        raise ValueError(f"script: pattern {pattern!r}: no regular expression: {error}") from error
    return Console(compiled, _seconds(step["timeout_s"]), _a(bool, step["fresh"]))


def _type(step: Dict[str, Any]) -> Type:
    text = _a(str, step["text"])
    if not text.isascii() or not 0 < len(text) <= MAX_TYPED:
        raise ValueError(f"script: text {text[:80]!r}: wanted ASCII, 1 to {MAX_TYPED} characters")
    return Type(text.encode())


def _await(step: Dict[str, Any]) -> Await:
    return Await(_texts(step["events"]), _seconds(step["timeout_s"]))


def _dump(step: Dict[str, Any]) -> Dump:
    return Dump(_a(int, step["begin"]), _a(int, step["length"]))


_STEPS: Dict[str, Callable[[Dict[str, Any]], Step]] = {
    "qmp": _command,
    "repeat": _repeat,
    "gdb": _gdb,
    "console": _console,
    "type": _type,
    "await": _await,
    "dump": _dump,
}


def _step(step: Dict[str, Any]) -> Step:
    kind = _STEPS.get(step["do"])
    if kind is None:
        raise ValueError(f"script: no step {step['do']!r}; there are {', '.join(_STEPS)}")
    return kind(step)
