# SPDX-License-Identifier: GPL-2.0-or-later
"""One line of the probe guest's report: ``SEVES1 n=3 KIND ... crc=89abcdef``.

The format is that of guest/payload/README.md. A line is checked as a whole (its CRC, its keys and their
order), so that one that lost or gained a byte on its way is never half believed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "SEVES1"
#: No line of this version is longer.
MAX_LINE = 512

_FRAME = re.compile(rb"(SEVES1 n=(0|[1-9][0-9]{0,9}) (.*)) crc=([0-9a-f]{8})", re.DOTALL)


class LineError(ValueError):
    """This is no line of a report; the text says what is the matter with it."""


@dataclass(frozen=True)
class Line:
    """A line whose checksum is right.

    :ivar number: lines before it, as the guest counted them.
    :ivar kind: one of those that were asked for.
    :ivar values: its fields by name, decoded.
    """

    number: int
    kind: str
    values: Mapping[str, Any]


def _decimal(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text):
        raise ValueError("a decimal number")
    return int(text)


def _hex(text: str) -> int:
    if not re.fullmatch(r"0|[1-9a-f][0-9a-f]{0,15}", text):
        raise ValueError("a hexadecimal number")
    return int(text, 16)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,32}", text):
        raise ValueError("a name")
    return text


def _entry(text: str) -> str:
    if text not in ("reset-vector", "reset-block", "sipi-vector"):
        raise ValueError("reset-vector, reset-block or sipi-vector")
    return text


def _kept(text: str) -> bool:
    if text not in ("kept", "changed"):
        raise ValueError("kept or changed")
    return text == "kept"


def _versions(text: str) -> tuple[int, int]:
    low, dots, high = text.partition("..")
    if not dots:
        raise ValueError("two versions")
    return _decimal(low), _decimal(high)


def _word(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,64}", text):
        raise ValueError("a word")
    return text


def _status(text: str) -> int | None:
    return None if text == "none" else _hex(text)


def _text(text: str) -> str:
    if not re.fullmatch(r"([0-9a-f]{2}){0,160}", text):
        raise ValueError("bytes in hexadecimal")
    return bytes.fromhex(text).decode(errors="backslashreplace")


def _counts(text: str) -> dict[int, int]:
    counts = {}
    for item in text.split(","):
        reason, colon, count = item.partition(":")
        if not colon or _hex(reason) in counts:
            raise ValueError("a count for each reason")
        counts[_hex(reason)] = _decimal(count)
    return counts


_Decoder = Callable[[str], Any]
_GHCB: dict[str, _Decoder] = {"ghcb": _versions, "version": _decimal}
_CANARIES: dict[str, _Decoder] = dict.fromkeys(("gpr", "xmm", "cr3", "dr", "memory"), _kept)
#: Fields of each kind of line, in their order. The word that names the kind is a field where it has a value.
FIELDS: dict[str, tuple[dict[str, _Decoder], ...]] = {
    "begin": (
        {
            "scenario": _name,
            "cpus": _decimal,
            "tag": _hex,
            "again": _flag,
            "sev_status": _hex,
            "cbit": _decimal,
            **_GHCB,
            "x2apic": _flag,
        },
    ),
    "cpu": (
        {
            "cpu": _decimal,
            "apic": _decimal,
            "cpuid": _decimal,
            "arrived": _flag,
            "entry": _entry,
            "at": _hex,
            "cs": _hex,
            "sev_status": _hex,
            **_GHCB,
            "vc": _counts,
        },
    ),
    "beat": ({"beat": _decimal, "holding": _decimal, **_CANARIES},),
    "canaries": ({"canaries": _decimal, "checks": _decimal, **_CANARIES},),
    "parked": ({"parked": _decimal, "wakes": _decimal, "spurious": _decimal},),
    "storm": ({"storm": _decimal, "rounds": _decimal, "bad": _decimal, "vc": _counts},),
    "fault": (
        {"cpu": _decimal, "vector": _hex, "error": _hex, "rip": _hex, "cr2": _hex},
        {"cpu": _decimal, "vmgexit": _hex, "info1": _hex, "info2": _hex},
    ),
    "returned": ({"returned": _flag},),
    "end": (
        {
            "scenario": _name,
            "lines": _decimal,
            "cpus": _decimal,
            "retries": _decimal,
            "forced": _decimal,
            "result": _name,
        },
    ),
}
#: The same of the init of a Linux guest (guest/linux/README.md).
LINUX_FIELDS: dict[str, tuple[dict[str, _Decoder], ...]] = {
    "begin": (
        {
            "scenario": _name,
            "tag": _hex,
            "present": _decimal,
            "online": _decimal,
            "cycles": _decimal,
            "kernel": _word,
        },
    ),
    "log": ({"log": _decimal, "text": _text},),
    "cpu": (
        {
            "cpu": _decimal,
            "ran": _flag,
            "apic": _decimal,
            "features": _hex,
            "status": _status,
            "errno": _decimal,
        },
    ),
    "cycled": (
        {"cycled": _decimal, "offline": _decimal, "online": _decimal, "ran": _decimal, "errno": _decimal},
    ),
    "end": ({"scenario": _name, "lines": _decimal, "cpus": _decimal, "result": _name},),
}


def parse_line(raw: bytes, known: Mapping[str, tuple[dict[str, _Decoder], ...]] = FIELDS) -> Line:
    """Read one line, without its line feed.

    :param known: the lines that there are: :data:`FIELDS` or :data:`LINUX_FIELDS`.
    :raise LineError: it is none.
    """
    if len(raw) > MAX_LINE:
        raise LineError(f"wanted at most {MAX_LINE} bytes, got {len(raw)}")
    frame = _FRAME.fullmatch(raw)
    if frame is None:
        raise LineError(f"wanted '{VERSION} n=... crc=...'")
    covered, number, body, crc = frame.groups()
    if zlib.crc32(covered) != int(crc, 16):
        raise LineError(f"wanted crc={zlib.crc32(covered):08x} for this text, got crc={crc.decode()}")
    try:
        words = body.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise LineError("wanted ASCII") from None
    kind = words[0].partition("=")[0]
    if kind not in known:
        raise LineError(f"wanted a line of {', '.join(known)}, got {kind!r}")
    pairs = [word.partition("=") for word in (words if "=" in words[0] else words[1:])]
    for fields in known[kind]:
        if [name for name, _, _ in pairs] == list(fields):
            return Line(
                int(number), kind, {name: _decode(fields[name], name, text) for name, _, text in pairs}
            )
    wanted = " or ".join(" ".join(fields) for fields in known[kind])
    raise LineError(f"{kind}: wanted the fields {wanted}")


def _decode(decoder: _Decoder, name: str, text: str) -> Any:
    try:
        return decoder(text)
    except ValueError as error:
        raise LineError(f"{name}: wanted {error}, got {text!r}") from None
