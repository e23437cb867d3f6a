# SPDX-License-Identifier: GPL-2.0-or-later
"""What a value of the inventory may be: each function returns its final form or says what was wanted."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

_VMMS = ("qemu",)
_KEY_FIELDS = {
    "ssh-ed25519": 2,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "ssh-rsa": 3,
}


class BadValue(ValueError):
    """A value that does not fit; the text says what was wanted."""


def plain(value: object) -> str:
    """Any text that fits on a line."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise BadValue("wanted a string of printable characters, not empty")
    return value


def word(value: object) -> str:
    """One word: a user, a program."""
    text = plain(value)
    if text.startswith("-") or any(c.isspace() for c in text):
        raise BadValue("wanted one word, without spaces and not starting with '-'")
    return text


def address(value: object) -> str:
    """A host name or an IP address."""
    text = word(value)
    if "@" in text:
        raise BadValue("wanted a host name or IP address alone; the user goes into its own key, user")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", text) is None:
            raise BadValue(
                "wanted a host name or IP address alone; a port goes into its own key, port"
            ) from None
    return text


def address_or_place(value: object) -> str:
    """An address, or ``labgrid:PLACE``."""
    if isinstance(value, str) and value.startswith("labgrid:"):
        if re.fullmatch(r"labgrid:[A-Za-z0-9_.-]+", value) is None:
            raise BadValue("wanted the plain name of a place of labgrid after 'labgrid:'")
        return value
    return address(value)


def integer(low: int, high: int) -> Callable[[object], int]:
    """A whole number within limits."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadValue(f"wanted a whole number from {low} to {high}")
        return value

    return parse


def seconds(value: object) -> float:
    """A span of time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise BadValue("wanted a number of seconds above 0, up to 3600")
    return float(value)


def wait(value: object) -> float:
    """A span of time, or none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400:
        raise BadValue("wanted a number of seconds from 0 to 86400")
    return float(value)


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise BadValue("wanted true or false")
    return value


def words(value: object) -> tuple[str, ...]:
    """The words of a command."""
    if not isinstance(value, list) or not all(isinstance(v, str) and v and v.isprintable() for v in value):
        raise BadValue('wanted an array of words, such as ["sudo", "-n"]')
    return tuple(value)


def version(value: object) -> tuple[int, ...]:
    """``"1.51"`` becomes ``(1, 51)``."""
    if not isinstance(value, str) or re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}", value) is None:
        raise BadValue('wanted a version in a string, such as "9.1"')
    return tuple(int(part) for part in value.split("."))


def vmm_name(value: object) -> str:
    """A VMM that there is an adapter for."""
    if value not in _VMMS:
        raise BadValue(f"wanted one of: {', '.join(_VMMS)}")
    return str(value)


def remote_path(value: object) -> str:
    """An absolute path on the host."""
    text = plain(value)
    if not text.startswith("/"):
        raise BadValue("wanted an absolute path on the host")
    return text


def sha256(value: object) -> str:
    """A SHA-256 in hex, lower case."""
    if not isinstance(value, str) or re.fullmatch(r"[0-9A-Fa-f]{64}", value) is None:
        raise BadValue("wanted the 64 hex digits that sha256sum prints")
    return value.lower()


def host_key(value: object) -> str:
    """An OpenSSH public key line without its comment: type and base64 blob (RFC 4253, 6.6)."""
    parts = plain(value).split()
    if parts[0] not in _KEY_FIELDS:
        hint = "; take the host name in front away" if len(parts) > 1 and parts[1] in _KEY_FIELDS else ""
        hint = (
            "; a fingerprint is not enough, the key itself is needed"
            if parts[0].startswith("SHA256:")
            else hint
        )
        raise BadValue(f'wanted "TYPE BASE64" with a type of {", ".join(_KEY_FIELDS)}{hint}')
    try:
        blob = base64.b64decode(parts[1] if len(parts) > 1 else "", validate=True)
        fields = _ssh_strings(blob)
    except (binascii.Error, struct.error, UnicodeError) as error:
        raise BadValue(f"wanted a whole {parts[0]} key; its base64 part is cut short or damaged") from error
    if not fields:
        raise BadValue(f"wanted a whole {parts[0]} key; its base64 part is cut short or damaged")
    if fields[0] != parts[0].encode():
        inside = fields[0][:40].decode("ascii", "replace")
        raise BadValue(
            f"wanted a key whose blob is of the type in front, {parts[0]}; the blob says {inside!r}"
        )
    if len(fields) != _KEY_FIELDS[parts[0]] or (parts[0] == "ssh-ed25519" and len(fields[1]) != 32):
        raise BadValue(f"wanted a whole {parts[0]} key; its base64 part is cut short or damaged")
    return f"{parts[0]} {parts[1]}"


def _ssh_strings(blob: bytes) -> list[bytes]:
    fields, at = [], 0
    while at < len(blob):
        (length,) = struct.unpack_from(">I", blob, at)
        if at + 4 + length > len(blob):
            raise struct.error("string runs past the end")
        fields.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return fields


def local_path(value: object, base: Path) -> Path:
    """A file of this machine: ``~`` is expanded, a relative path starts at the directory of the TOML file."""
    try:
        path = base / Path(plain(value)).expanduser()
    except RuntimeError as error:
        raise BadValue(f"wanted a path; {error}") from error
    if not os.path.isfile(path):  # Path.is_file() raises for a name that is too long
        raise BadValue(f"wanted a file of this machine; there is no file {path}")
    return path


def identity(value: object, base: Path) -> Path:
    """A private key file of this machine."""
    path = local_path(value, base)
    if path.suffix == ".pub":
        raise BadValue("wanted the private key, not the public one (.pub)")
    return path
