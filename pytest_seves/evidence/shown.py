# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers as a VMM's monitor shows them: QEMU's ``info registers``, x86_cpu_dump_state()."""

from __future__ import annotations

import re

from .registers import Registers

_CPU = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) ?=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]{8})", re.MULTILINE)
_TABLE = re.compile(r"^(GDT|IDT)= +([0-9a-f]+) ([0-9a-f]{8})", re.MULTILINE)
_VALUE = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) ?=([0-9a-f]{4,16})(?: ([0-9a-f]{16}))?\b")
_NAMES = {"efl": "rflags", "rfl": "rflags", "fcw": "x87_fcw", "ldt": "ldtr", "gdt": "gdtr", "idt": "idtr"}
#: Shown, and of no interest: tags of the x87 registers are shown by QEMU in its own form.
_SKIPPED = frozenset({"fsw", "ftw"})


def registers_shown(text: str) -> dict[int, Registers]:
    """Registers by vCPU index and VMSA field name, out of ``info registers -a``.

    Segments have a selector and a base, limits of tables are left out.
    """
    parts = _CPU.split(text)[1:]
    return {int(number): _registers(shown) for number, shown in zip(parts[::2], parts[1::2], strict=True)}


def _registers(text: str) -> Registers:
    found: Registers = {}
    for name, selector, base, _ in _SEGMENT.findall(text):
        field = _NAMES.get(name.lower(), name.lower())
        found.update({f"{field}.selector": int(selector, 16), f"{field}.base": int(base, 16)})
    for name, base, _ in _TABLE.findall(text):
        found[f"{_NAMES[name.lower()]}.base"] = int(base, 16)
    rest = _TABLE.sub("", _SEGMENT.sub("", text))
    for name, value, low in _VALUE.findall(rest):
        field = _field(name.lower())
        if field not in _SKIPPED:
            found[field] = int(value + low, 16)
    return found


def _field(name: str) -> str:
    """``eip`` is ``rip``; the monitor shows 32-bit names outside long mode."""
    if len(name) == 3 and name[0] == "e" and name not in _NAMES:
        name = "r" + name[1:]
    return _NAMES.get(name, name)


def unknown_values(shown: Registers, given: Registers) -> dict[str, str]:
    """Registers whose value is neither 0 nor what the VMM itself had given to KVM.

    Both are right of a guest that has not run: KVM keeps zeros for what it does not know, and its copy of
    what was set before the measurement; a newer VMM shows a copy of its own.
    """
    return {
        name: f"wanted 0 or {given.get(name, 0):#x}, got {value:#x}"
        for name, value in shown.items()
        if value not in (0, given.get(name, 0))
    }
