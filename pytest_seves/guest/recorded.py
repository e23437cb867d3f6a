# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked for, as JSON that a later run can look up: specs of guests, programs of calls. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from .calls import Step
from .spec import PUT, GuestSpec


def stored_name(name: str, content: bytes) -> str:
    """What a file that is put on a host is called there: another content is another file."""
    return f"{hashlib.sha256(content).hexdigest()[:12]}-{name}"


def spec_record(spec: GuestSpec, put: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All of a spec.

    :param put: what each file that was put on the host is called, by its path there.
    """
    record: dict[str, Any] = _plain(spec, {path: PUT + name for path, name in (put or {}).items()})
    return record


def spec_key(record: Mapping[str, Any]) -> str:
    """Equal for equal guests; a field that the record does not know yet is at its default."""
    return json.dumps({**_DEFAULTS, **record}, sort_keys=True)


def program_record(program: Sequence[Step]) -> list[dict[str, Any]]:
    """All steps of a program of direct calls."""
    return [{"label": step.label, "wire": dict(step.wire), "needed": step.needed} for step in program]


def _plain(value: object, put: Mapping[str, str]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        record = {field.name: _plain(getattr(value, field.name), put) for field in fields(value)}
        return record if isinstance(value, GuestSpec) else {"is": type(value).__name__, **record}
    if isinstance(value, tuple):
        return [_plain(part, put) for part in value]
    if isinstance(value, str):
        for path, name in put.items():
            value = value.replace(path, name)
        return value
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


_DEFAULTS = spec_record(GuestSpec())
