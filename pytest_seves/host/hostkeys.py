# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinned host keys: which keys a server may present, from the inventory or an OpenSSH known_hosts file.

The known_hosts format is that of sshd(8), section SSH_KNOWN_HOSTS FILE FORMAT: plain, wildcard, negated and
hashed names, and the marker ``@revoked``. ``@cert-authority`` lines are passed over: host certificates are
not used here.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from pytest_seves.errors import HostKeyChanged, HostKeyUnknown
from pytest_seves.host.inventory import LabHost

CONSOLE = "`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on its own console"
"""Where to see a host's keys without trusting the network."""


@dataclass(frozen=True)
class HostKey:
    """A public key.

    :ivar type: "ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa", ...
    :ivar blob: its encoding on the wire (RFC 4253, section 6.6).
    """

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen -l prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.type} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True)
class Pins:
    """The keys that a server may present.

    :ivar source: where they come from, for messages.
    """

    trusted: tuple[HostKey, ...]
    revoked: tuple[HostKey, ...]
    source: str

    @property
    def types(self) -> tuple[str, ...]:
        """The key types there is a pin for, in order."""
        return tuple(dict.fromkeys(key.type for key in self.trusted))


def parse_key(text: str) -> HostKey:
    """A key from ``type base64 [comment]``.

    :raises ValueError: it is none, or its type and its content disagree.
    """
    words = text.split()
    if len(words) < 2:
        raise ValueError(f"{text!r}: wanted a key type and base64, as in 'ssh-ed25519 AAAA...'")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{words[1][:40]!r}...: not base64: {error}") from error
    name = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    if name != words[0].encode():
        raise ValueError(f"the key says that it is {name[:40]!r}, the text says {words[0]!r}")
    return HostKey(words[0], blob)


def pins_from_inventory(text: str, source: str) -> Pins:
    """Pins from the ``host_key`` of a lab file: one key per line.

    :raises ValueError: a line is no key.
    """
    return Pins(tuple(parse_key(line) for line in text.splitlines() if line.strip()), (), source)


def pins_from_known_hosts(path: Path, address: str, port: int) -> Pins:
    """Pins from a known_hosts file; a missing file pins nothing.

    :raises OSError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    name = address if port == 22 else f"[{address}]:{port}"
    trusted, revoked = [], []
    for line in lines:
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or not _matches(words[0], name):
            continue
        try:
            key = parse_key(" ".join(words[1:3]))
        except ValueError:
            continue  # as OpenSSH does: a damaged line vouches for nothing
        if marker == "@revoked":
            revoked.append(key)
        elif not marker:
            trusted.append(key)
    return Pins(tuple(trusted), tuple(revoked), str(path))


def pins_for(host: LabHost, text: str | None, address: str, port: int, section: str) -> Pins:
    """Pins from `text`, the ``host_key`` of a `section` of the lab file; without it from known_hosts."""
    if text:
        return pins_from_inventory(text, f"host_key in {section} of {host.file or host.name}")
    return pins_from_known_hosts(host.known_hosts or Path("~/.ssh/known_hosts").expanduser(), address, port)


def public_half(identity: Path) -> bytes | None:
    """The public key beside the private key file `identity`, on the wire; None if it is not there."""
    try:
        return parse_key(Path(f"{identity}.pub").read_text(encoding="utf-8")).blob
    except (OSError, ValueError):
        return None


def _matches(patterns: str, name: str) -> bool:
    """Whether the comma-separated `patterns` cover `name`; one negated match excludes it."""
    if patterns.startswith("|"):
        return _matches_hash(patterns, name)
    found = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        # [ is no set here but part of [address]:port
        if fnmatch.fnmatchcase(name.lower(), pattern.lstrip("!").lower().replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def _matches_hash(pattern: str, name: str) -> bool:
    try:
        _, version, salt, digest = pattern.split("|")
        wanted = base64.b64decode(digest, validate=True)
        got = hmac.digest(base64.b64decode(salt, validate=True), name.encode(), "sha1")
    except ValueError:
        return False
    return version == "1" and hmac.compare_digest(wanted, got)


def check(key: HostKey, pins: Pins, where: str, host: str) -> None:
    """Accept the `key` that a server presents, or raise.

    :param where: what was called; `host`: the lab file's name, for the message.
    :raises HostKeyChanged: another key is pinned, or this one is revoked.
    :raises HostKeyUnknown: no key is pinned.
    """
    evidence = {"presented": str(key), "fingerprint": key.fingerprint, "source": pins.source}
    got = f"{key.type} {key.fingerprint}"
    if key in pins.revoked:
        raise HostKeyChanged(
            f"{where}: presents {got}, which {pins.source} marks as revoked", host=host, **evidence
        )
    if key in pins.trusted:
        return
    if pins.trusted:
        pinned = ", ".join(f"{pin.type} {pin.fingerprint}" for pin in pins.trusted)
        raise HostKeyChanged(
            f"{where}: wanted the pinned key {pinned} (from {pins.source}), got {got}. Either the machine was"
            f" installed anew or something stands between: compare with {CONSOLE} before you replace the pin",
            host=host,
            **evidence,
        )
    raise HostKeyUnknown(
        f"{where}: presents {got}, and {pins.source} has no key for it. Compare with {CONSOLE}, then pin it:"
        f' host_key = "{key}"',
        host=host,
        **evidence,
    )
