# SPDX-License-Identifier: GPL-2.0-or-later
"""A host's facts as a file: what its agent answered, and what its lab file expects, to judge both again.

Where the host is and how one gets in is no part of it: no address, user, key or sudo rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.bundle import FACTS_FORMAT, VERSION

from .facts import HostFacts, decode_facts
from .inventory import Expect, Firmware, GuestKernel, LabHost, Vmm
from .readiness import judge

Json = Mapping[str, Any]


def facts_record(raw: Json, now_ns: int, entry: LabHost) -> dict[str, Any]:
    """The file's content.

    :param raw: the agent's answer.
    :param now_ns: this machine's wall clock when it came.
    """
    return {
        "format": FACTS_FORMAT,
        "version": VERSION,
        "raw": dict(raw),
        "now_ns": now_ns,
        "lab": {
            "name": entry.name,
            "model": entry.model,
            "python": entry.python,
            "max_guests": entry.max_guests,
            "vmm": asdict(entry.vmm),
            "firmware": asdict(entry.firmware),
            "guest": asdict(entry.guest),
            "expect": asdict(entry.expect),
        },
        "readiness": [asdict(row) for row in judge(decode_facts(raw, now_ns=now_ns), entry)],
    }


def facts_of(record: Json) -> HostFacts:
    """The facts again."""
    try:
        return decode_facts(record["raw"], now_ns=int(record["now_ns"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"facts: cannot be read: {type(error).__name__}: {error}") from error


def entry_of(record: Json) -> LabHost:
    """The lab entry again, without the way to the host."""
    try:
        lab = record["lab"]
        expect: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in lab["expect"].items()
        }
        return LabHost(
            name=str(lab["name"]),
            file=None,
            address="",
            user="",
            model=lab["model"],
            python=str(lab["python"]),
            max_guests=lab["max_guests"],
            vmm=Vmm(**lab["vmm"]),
            firmware=Firmware(**lab["firmware"]),
            guest=GuestKernel(**lab["guest"]),
            expect=Expect(**expect),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"facts: lab: cannot be read: {type(error).__name__}: {error}") from error
