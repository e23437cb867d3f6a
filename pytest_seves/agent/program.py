# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of direct calls as the controller sends it: a list of steps, checked before the first one runs.

Each step is an object; ``do`` says what. ``as`` names what a step makes, ``on`` and ``of`` what it uses. A
step that is ``needed`` ends the program when it is refused.

========= ==========================================================================================
``do``    what, and the keys beside ``do`` and ``needed`` (those in brackets may be absent)
========= ==========================================================================================
memory    anonymous pages: as, size, [hex]
peek      bytes of such pages: of, size, [offset]
open      /dev/kvm or /dev/sev, for reading and writing: path, as
ioctl     any request: on, request, [arg | hex, pointers], [as: the result is a descriptor]
sev       a sub-command of KVM_MEMORY_ENCRYPT_OP: on, command, [sev], [hex, pointers]
issue     SEV_ISSUE_CMD: on, command, hex, [pointers]
run       KVM_RUN: on, immediate_exit, limit_s; after `limit_s` the thread is kicked out of it
close     a descriptor: on
misc      units of the misc controller in use
========= ==========================================================================================

``hex`` is a structure, ``pointers`` a list of [offset in it, name of a memory, offset in that].
"""

from __future__ import annotations

from typing import Any, Dict, List, Set

DEVICES = ("/dev/kvm", "/dev/sev")
PAGE = 4096
MAX_STEPS = 100_000
MAX_MEMORY = 256 << 20

Step = Dict[str, Any]

#: (keys that a step has, keys that it may have)
_KEYS: Dict[str, Any] = {
    "memory": ({"as", "size"}, {"hex"}),
    "peek": ({"of", "size"}, {"offset"}),
    "open": ({"path", "as"}, set()),
    "ioctl": ({"on", "request"}, {"arg", "hex", "pointers", "as"}),
    "sev": ({"on", "command"}, {"sev", "hex", "pointers"}),
    "issue": ({"on", "command", "hex"}, {"pointers"}),
    "run": ({"on", "immediate_exit", "limit_s"}, set()),
    "close": ({"on"}, set()),
    "misc": (set(), set()),
}
_KINDS: Dict[str, Any] = {
    **dict.fromkeys(("do", "as", "on", "of", "path", "sev", "hex"), (str, "a string")),
    **dict.fromkeys(("size", "offset", "request", "arg", "command"), (int, "an integer of 64 bits")),
    "limit_s": ((int, float), "a number"),
    "pointers": (list, "a list"),
    **dict.fromkeys(("immediate_exit", "needed"), (bool, "true or false")),
}


def check(program: Any) -> List[Step]:
    """The steps of `program`.

    :raises ValueError: says which step is wrong, and how.
    """
    if not isinstance(program, list) or not 0 < len(program) <= MAX_STEPS:
        raise ValueError(f"wanted a list of 1 to {MAX_STEPS} steps")
    names = _Names()
    for number, step in enumerate(program):
        try:
            _check_keys(step)
            _check_values(step)
            names.check(step)
        except ValueError as error:
            raise ValueError(f"step #{number} {step!r:.200}: {error}") from None
    return program


def _check_keys(step: Any) -> None:
    if not isinstance(step, dict):
        raise ValueError("wanted an object")
    if not isinstance(step.get("do"), str) or step["do"] not in _KEYS:
        raise ValueError(f"nothing that can be done; there is {', '.join(_KEYS)}")
    wanted, allowed = _KEYS[step["do"]]
    given = set(step) - {"do", "needed"}
    if wanted - given or given - wanted - allowed:
        keys, more = (", ".join(sorted(names)) or "none" for names in (wanted, allowed))
        raise ValueError(f"keys: wanted {keys}, and allowed {more}")
    if "arg" in given and given & {"hex", "pointers"}:
        raise ValueError("arg and hex exclude each other")


def _check_values(step: Step) -> None:
    for key, value in step.items():
        kind, word = _KINDS[key]
        boolean = isinstance(value, bool)
        if not isinstance(value, kind) or boolean != (kind is bool):
            raise ValueError(f"{key} {value!r}: wanted {word}")
        if kind is int and not 0 <= value < 1 << 64:
            raise ValueError(f"{key} {value!r}: wanted {word}")
    if step["do"] == "open" and step["path"] not in DEVICES:
        raise ValueError(f"path {step['path']!r}: wanted {' or '.join(DEVICES)}")
    if step["do"] == "memory" and (step["size"] % PAGE or not 0 < step["size"] <= MAX_MEMORY):
        raise ValueError(f"size {step['size']}: wanted pages of {PAGE} bytes, at most {MAX_MEMORY} bytes")
    if step["do"] == "run" and not 0 < step["limit_s"] < 1e4:
        raise ValueError(f"limit_s {step['limit_s']}: wanted a positive number of seconds")


class _Names:
    """What the steps so far have made."""

    def __init__(self) -> None:
        self._descriptors: Set[str] = set()
        self._memory: Dict[str, int] = {}

    def check(self, step: Step) -> None:
        """A step uses what was made before, within its bounds, and makes what is not there."""
        structure = len(bytes.fromhex(step.get("hex", "")))
        for key in ("on", "sev"):
            if key in step and step[key] not in self._descriptors:
                raise ValueError(f"{key} {step[key]!r}: no such descriptor is open")
        for pointer in step.get("pointers", ()):
            self._check_pointer(pointer, structure)
        if step["do"] == "peek":
            self._check_range(step["of"], step.get("offset", 0), step["size"])
        if step["do"] == "memory" and structure > step["size"]:
            raise ValueError(f"hex: {structure} bytes do not fit into {step['size']}")
        if step["do"] == "close":
            self._descriptors.remove(step["on"])
        self._make(step)

    def _check_pointer(self, pointer: Any, structure: int) -> None:
        if (
            not isinstance(pointer, list)
            or [type(part) for part in pointer] != [int, str, int]
            or not 0 <= pointer[0] <= structure - 8
        ):
            raise ValueError(f"pointer {pointer!r}: wanted [offset in the structure, memory, offset in it]")
        self._check_range(pointer[1], pointer[2], 0)

    def _check_range(self, name: str, offset: int, size: int) -> None:
        if name not in self._memory:
            raise ValueError(f"{name!r}: no such memory")
        if offset < 0 or offset + size > self._memory[name]:
            raise ValueError(f"{name!r}: {size} bytes at {offset} are beyond its {self._memory[name]}")

    def _make(self, step: Step) -> None:
        name = step.get("as")
        if name is None:
            return
        if name in self._descriptors or name in self._memory:
            raise ValueError(f"as {name!r}: the name is in use")
        if step["do"] == "memory":
            if sum(self._memory.values()) + step["size"] > MAX_MEMORY:
                raise ValueError(f"more than {MAX_MEMORY} bytes of memory in all")
            self._memory[name] = step["size"]
        else:
            self._descriptors.add(name)
