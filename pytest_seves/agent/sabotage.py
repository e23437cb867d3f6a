# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that change, drop, fail or add ioctls: a VMM, kernel or firmware that is wrong in a named way.

A rule names a request and, where it matters, a SEV command, a vCPU or an argument; `skip`, `limit` and
`after` say which of the matching calls it takes. Rules apply in order, and several may take the same call.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from pytest_seves.agent.capture import Call
from pytest_seves.spec import kvm, sev

_ERROR_OFFSET = {kvm.KVM_MEMORY_ENCRYPT_OP: 16, sev.SEV_ISSUE_CMD: 12}
_WORDS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
_MATCH_KEYS = {"name", "request", "sev", "issue", "vcpu", "arg", "skip", "limit", "after", "action"}
#: Parameters of each action: (needed, optional).
_ACTIONS: dict[str, tuple[set[str], set[str]]] = {
    "drop": (set(), {"ret"}),
    "fail": ({"errno"}, {"fw_error"}),
    "rewrite": ({"where", "value"}, {"offset", "size", "mask"}),
    "rewrite-result": ({"where", "value"}, {"offset", "size", "mask"}),
    "return": ({"ret"}, set()),
    "inject-after": ({"inject"}, set()),
    "retry-as": ({"retry"}, set()),
    "defer": ({"until"}, set()),
}
_PLACES = {"rewrite": ("arg", "value", "data"), "rewrite-result": ("arg", "data", "issue-data")}


@dataclass(frozen=True)
class Place:
    """Bits in the VMM's memory, or in the argument itself."""

    where: str
    offset: int
    size: int
    value: int
    mask: int

    def address(self, call: Call) -> int:
        """Where they are for `call`; 0: that pointer is NULL."""
        base = call.arg if self.where == "arg" else call.data
        return base + self.offset if base else 0

    def read(self, call: Call) -> Optional[int]:
        """What is there; None: nothing is mapped there."""
        address = self.address(call)
        raw = call.memory.read(call.tid, address, self.size) if address else b""
        value: Optional[int] = struct.unpack(_WORDS[self.size], raw)[0] if len(raw) == self.size else None
        return value

    def write(self, call: Call, value: int) -> bool:
        """Whether it could be written."""
        return call.memory.write(call.tid, self.address(call), struct.pack(_WORDS[self.size], value))

    def merge(self, old: int) -> int:
        """`old` with the bits of the mask replaced."""
        return (old & ~self.mask) | (self.value & self.mask)


@dataclass(frozen=True)
class Injection:
    """A call that the recorder issues in the VMM's name.

    :ivar raw: bytes to put behind the argument; None: the VMM's own bytes at its own argument.
    :ivar data: the structure of the SEV command, for a command that has one.
    :ivar as_sev: the command number to put into the VMM's own bytes meanwhile.
    :ivar visible: the VMM sees this result instead of that of its own call.
    """

    rule: str
    request: int
    fd: Optional[int]
    vcpu: Optional[int] = None
    raw: Optional[bytes] = None
    data: bytes = b""
    as_sev: Optional[int] = None
    visible: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule, checked; :func:`load` says how it is written."""

    name: str
    action: str
    request: int
    sev: Optional[int] = None
    issue: Optional[int] = None
    vcpu: Optional[int] = None
    arg: Optional[int] = None
    skip: int = 0
    limit: Optional[int] = None
    after: Optional[str] = None
    params: dict[str, Any] = field(default_factory=dict)
    place: Optional[Place] = None

    def matches(self, call: Call) -> bool:
        """Whether `call` is of the kind that this rule is about."""
        if self.request != call.request or (self.sev is not None and self.sev != call.sev_id):
            return False
        if self.issue is not None and (call.issue is None or self.issue != call.issue["cmd"]):
            return False
        if self.arg is not None and self.arg != call.arg:
            return False
        index = call.arg if call.request == kvm.KVM_CREATE_VCPU else call.descriptor.vcpu
        return self.vcpu is None or self.vcpu == index

    def injection(self, call: Call) -> Injection:
        """What an ``inject-after`` or ``retry-as`` issues after `call`."""
        if self.action == "retry-as":
            return Injection(self.name, call.request, call.fd, as_sev=self.params["retry"], visible=True)
        inject = self.params["inject"]
        number: Optional[int] = inject.get("sev")
        if number is not None:
            sev_fd = struct.unpack_from("<I", call.raw_in or bytes(24), 20)[0]
            return Injection(
                self.name, call.request, call.fd, raw=sev.KVM_SEV_CMD.encode(id=number, sev_fd=sev_fd)
            )
        vcpu: Optional[int] = inject.get("vcpu")
        fd = call.fd if vcpu is None else None
        return Injection(self.name, inject["request"], fd, vcpu, bytes.fromhex(inject.get("in") or ""))


class Changes:
    """What the rules did to one call, and what is left to do at its end."""

    def __init__(self) -> None:
        self.matched: list[Rule] = []  # all that count this call
        self.taken: list[Rule] = []  # those that act on it
        self.fired: list[Rule] = []
        self.result: Optional[int] = None  # what the VMM sees instead of the kernel's result
        self.argument: Optional[int] = None  # the VMM's own args[2], when the kernel sees another
        self.undo: list[tuple[Place, int, int]] = []


class Saboteur:
    """The rules of one launch, and how often each has fired."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)
        self._seen = {rule.name: 0 for rule in self._rules}
        self._deferred: list[tuple[int, Injection]] = []
        self.fired = dict(self._seen)
        self.requests = frozenset(rule.request for rule in self._rules)

    def enter(self, call: Call) -> Optional[Changes]:
        """Apply what must be done before the kernel sees `call`; None: no rule is about it.

        A call that the kernel is not to see comes back with `executed` false and its result in `ret`.
        """
        matched = [rule for rule in self._rules if rule.matches(call)]
        if not matched:
            return None
        changes = Changes()
        changes.matched = matched
        for rule in matched:
            self._seen[rule.name] += 1
            if self._seen[rule.name] > rule.skip and self._is_due(rule):
                changes.taken.append(rule)
                self._before(rule, call, changes)
        if changes.undo or changes.argument is not None:
            call.enter()
        return changes

    def _is_due(self, rule: Rule) -> bool:
        spent = rule.limit is not None and self.fired[rule.name] >= rule.limit
        return not spent and (rule.after is None or self.fired[rule.after] > 0)

    def _fire(self, rule: Rule, call: Call, changes: Changes) -> None:
        self.fired[rule.name] += 1
        changes.fired.append(rule)
        call.rules = [*(call.rules or []), rule.name]

    def _before(self, rule: Rule, call: Call, changes: Changes) -> None:
        if rule.action == "rewrite":
            if self._rewrite(rule, call, changes):
                self._fire(rule, call, changes)
            return
        if rule.action == "defer":
            data = bytes.fromhex((call.sev or {}).get("in", ""))
            later = Injection(rule.name, call.request, call.fd, None, call.raw_in, data)
            self._deferred.append((rule.params["until"]["sev"], later))
            ret = 0
        elif rule.action == "drop":
            ret = rule.params.get("ret", 0)
        elif rule.action == "fail":
            ret = -rule.params["errno"]
            if rule.params.get("fw_error") is not None and call.arg:
                error = struct.pack("<I", rule.params["fw_error"])
                call.memory.write(call.tid, call.arg + _ERROR_OFFSET[call.request], error)
        else:
            return
        call.executed = False
        call.ret = changes.result = ret
        self._fire(rule, call, changes)

    def _rewrite(self, rule: Rule, call: Call, changes: Changes) -> bool:
        place = rule.place
        if place is None:
            return False
        if place.where == "value":
            if changes.argument is None:
                changes.argument = call.arg
            call.arg = place.merge(call.arg)
            return True
        old = place.read(call)
        if old is None or not place.write(call, place.merge(old)):
            return False
        changes.undo.append((place, old, place.merge(old)))
        return True

    def leave(self, call: Call, changes: Changes) -> list[Injection]:
        """Put the VMM's bytes back, apply what comes after the kernel, and say what to issue now."""
        self._restore(call, changes)
        injections = []
        for rule in changes.taken:
            seen = changes.result if changes.result is not None else call.ret or 0
            if rule.action == "return":
                changes.result = rule.params["ret"]
            elif rule.action == "rewrite-result" and seen >= 0:
                old = rule.place.read(call) if rule.place else None
                if rule.place is None or old is None or not rule.place.write(call, rule.place.merge(old)):
                    continue
            elif (rule.action == "inject-after" and seen >= 0) or (rule.action == "retry-as" and seen < 0):
                injections.append(rule.injection(call))
            else:
                continue
            self._fire(rule, call, changes)
        return injections

    def _restore(self, call: Call, changes: Changes) -> None:
        for place, old, new in reversed(changes.undo):
            if place.read(call) == new:  # else it is the kernel's answer
                place.write(call, old)

    def restarted(self, call: Call, changes: Changes) -> None:
        """The call was interrupted and comes again: it does not count."""
        self._restore(call, changes)
        for rule in changes.matched:
            self._seen[rule.name] -= 1
        for rule in changes.fired:
            self.fired[rule.name] -= 1

    def released(self, call: Call) -> list[Injection]:
        """The deferred calls whose time has come with the success of `call`."""
        due = [injection for until, injection in self._deferred if until == call.sev_id]
        self._deferred = [entry for entry in self._deferred if entry[0] != call.sev_id]
        return due


def load(rules: list[dict[str, Any]]) -> list[Rule]:
    """Check rules as they come from JSON.

    The parameters of an action stand beside it: ``drop`` ret; ``fail`` errno, fw_error; ``rewrite`` and
    ``rewrite-result`` where, offset, size, value, mask; ``return`` ret; ``inject-after`` inject, which is
    ``{"sev": id}`` or ``{"request": number, "in": hex, "vcpu": index}``; ``retry-as`` retry (a SEV id);
    ``defer`` until, which is ``{"sev": id}``.

    :raise ValueError: an unknown key or action, a missing parameter, a name used twice or never defined.
    """
    loaded = [_load(number, rule) for number, rule in enumerate(rules)]
    names = [rule.name for rule in loaded]
    for rule in loaded:
        if names.count(rule.name) > 1:
            raise ValueError(f"rule {rule.name!r} is there twice")
        if rule.after is not None and (rule.after not in names or rule.after == rule.name):
            raise ValueError(
                f"rule {rule.name!r}: after {rule.after!r}: wanted the name of another rule, of {names}"
            )
    return loaded


def _load(number: int, written: dict[str, Any]) -> Rule:
    name = written.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"rule {number}: name {name!r}: wanted a text")
    action = written.get("action")
    if action not in _ACTIONS:
        raise ValueError(f"rule {name!r}: action {action!r}: wanted one of {', '.join(_ACTIONS)}")
    needed, optional = _ACTIONS[action]
    params = {key: value for key, value in written.items() if key not in _MATCH_KEYS}
    unknown, missing = set(params) - needed - optional, needed - set(params)
    if unknown or missing:
        raise ValueError(f"rule {name!r}: {action}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    place = _place(name, action, params)
    rule = Rule(
        name, action, **_numbers(name, written), after=written.get("after"), params=params, place=place
    )
    _check(rule)
    return rule


def _numbers(name: str, written: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: written.get(key) for key in ("request", "sev", "issue", "vcpu", "arg", "skip", "limit")}
    numbers["skip"] = numbers["skip"] or 0
    for key, value in numbers.items():
        if value is None and key != "request":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"rule {name!r}: {key} {value!r}: wanted a number")
    return numbers


def _place(name: str, action: str, params: dict[str, Any]) -> Optional[Place]:
    if action not in _PLACES:
        return None
    where, size, offset = params["where"], params.get("size", 8), params.get("offset", 0)
    if where not in _PLACES[action]:
        raise ValueError(f"rule {name!r}: where {where!r}: wanted one of {', '.join(_PLACES[action])}")
    if size not in _WORDS or not isinstance(offset, int) or offset < 0 or (where == "value" and offset):
        raise ValueError(
            f"rule {name!r}: offset {offset!r} size {size!r}: wanted 1, 2, 4 or 8 bytes in the structure"
        )
    ones = (1 << 8 * size) - 1
    value, mask = params["value"], params.get("mask")
    mask = ones if mask is None else mask
    if not 0 <= value <= ones or not 0 <= mask <= ones:
        raise ValueError(f"rule {name!r}: value {value:#x} mask {mask:#x}: wanted at most {size} bytes")
    return Place(where, offset, size, value, mask)


def _check(rule: Rule) -> None:
    """What only makes sense for some requests."""
    is_sev, is_issue = rule.request == kvm.KVM_MEMORY_ENCRYPT_OP, rule.request == sev.SEV_ISSUE_CMD
    params, where = rule.params, rule.place.where if rule.place else ""
    inject = params.get("inject", {"sev": 0} if is_sev else {"request": 0})
    if ("sev" in inject) == ("request" in inject) or set(inject) - {"sev", "request", "in", "vcpu"}:
        raise ValueError(
            f"rule {rule.name!r}: inject {inject!r}: wanted {{'sev'}} or {{'request', 'in', 'vcpu'}}"
        )
    bytes.fromhex(inject.get("in") or "")
    needs_sev = rule.sev is not None or rule.action in ("retry-as", "defer") or "sev" in inject
    if needs_sev and not is_sev:
        raise ValueError(f"rule {rule.name!r}: a SEV command needs the request KVM_MEMORY_ENCRYPT_OP")
    if (rule.issue is not None or where == "issue-data") and not is_issue:
        raise ValueError(f"rule {rule.name!r}: issue needs the request SEV_ISSUE_CMD")
    if (where == "data" or params.get("fw_error") is not None) and not (is_sev or is_issue):
        raise ValueError(f"rule {rule.name!r}: this request has no data pointer and no firmware error")
    if rule.action == "defer" and set(params["until"]) != {"sev"}:
        raise ValueError(f"rule {rule.name!r}: until {params['until']!r}: wanted {{'sev': number}}")
