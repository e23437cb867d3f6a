# SPDX-License-Identifier: GPL-2.0-or-later
"""The signature of a report: an in-toto statement in a DSSE envelope, by an ed25519 key of the user's.

in-toto Attestation Framework, Statement v1; DSSE v1.0. A key's id is the SHA-256 of its public key in DER, as
``openssl pkey -in KEY.pem -pubout -outform DER | sha256sum`` prints it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from pytest_seves.errors import EvidenceError, UsageError

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "pytest-seves:qualification/v1"
PAYLOAD = "application/vnd.in-toto+json"
_LONGEST_KEY = 1 << 16
Json = dict[str, Any]


def private_key(file: Path, passphrase: Callable[[], bytes]) -> CryptoSigner:
    """What signs.

    :param passphrase: asked only where the key is encrypted.
    :raise UsageError: it is no such key, others may read it, or the passphrase is wrong; says what to do.
    """
    content = _private(file)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:  # it is encrypted
        try:
            key = load_pem_private_key(content, password=passphrase())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UsageError(f"{file}: the passphrase does not open this key") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{file}: wanted an ed25519 private key in PEM; make one: openssl genpkey -algorithm ed25519"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{file}: wanted an ed25519 key, got {type(key).__name__}")
    return CryptoSigner(key, named(key.public_key()))


def public_key(file: Path) -> SSlibKey:
    """What a signature is checked with.

    :raise UsageError: it is no such key.
    """
    try:
        with file.open("rb") as opened:
            key = load_pem_public_key(opened.read(_LONGEST_KEY))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{file}: wanted an ed25519 public key in PEM: {error}; "
            "openssl pkey -in PRIVATE.pem -pubout gives it"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{file}: wanted an ed25519 key, got {type(key).__name__}")
    return named(key)


def sign(subjects: Mapping[str, str], predicate: Json, signer: CryptoSigner) -> bytes:
    """The envelope, as the file has it.

    :param subjects: SHA-256 by name.
    """
    payload = _json(statement(subjects, predicate))
    envelope = Envelope(payload, PAYLOAD, {})
    envelope.sign(signer)
    return _json(envelope.to_dict())


def statement(subjects: Mapping[str, str], predicate: Json) -> Json:
    """What is signed."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in subjects.items()],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }


def keyids(content: bytes) -> list[str]:
    """Ids of the keys that an envelope says it was signed with; nothing of it is checked.

    :raise EvidenceError: it is no envelope.
    """
    return list(_envelope(content).signatures)


def opened(content: bytes, key: SSlibKey) -> Json:
    """The statement in an envelope, signed with this key.

    :raise EvidenceError: it was not, or it is no envelope as :func:`sign` writes it.
    """
    envelope = _envelope(content)
    try:
        envelope.verify([key], 1)
    except VerificationError:
        by = ", ".join(keyid[:16] for keyid in envelope.signatures) or "nobody"
        raise EvidenceError(
            f"the signature does not hold for key {key.keyid[:16]}; the envelope says it was made by {by}"
        ) from None
    try:
        told = json.loads(envelope.payload)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"the signed statement is not JSON: {error}") from error
    if envelope.payload_type != PAYLOAD or not isinstance(told, dict):
        raise EvidenceError(f"wanted a statement of type {PAYLOAD}")
    return told


def _envelope(content: bytes) -> Envelope:
    try:
        envelope = Envelope.from_dict(json.loads(content))
        same = _json(envelope.to_dict()) == content
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, FormatError) as error:
        raise EvidenceError(f"no DSSE envelope: {type(error).__name__}: {error}") from error
    if not same:
        raise EvidenceError("the envelope holds something beside what was signed")
    return envelope


def named(key: Ed25519PublicKey) -> SSlibKey:
    """The public key, by the id that openssl shows of it."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SSlibKey.from_crypto(key, keyid=hashlib.sha256(der).hexdigest())


def _private(file: Path) -> bytes:
    """A file that nobody else can read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{file}: the key cannot be read: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UsageError(f"{file}: wanted a file with an ed25519 private key")
    with open(descriptor, "rb") as opened_file:
        if status.st_mode & 0o077 or status.st_uid not in (os.geteuid(), 0):
            mode = f"{stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
            raise UsageError(f"{file}: others may read this key (mode {mode}): chmod 600 {file}")
        return opened_file.read(_LONGEST_KEY)


def _json(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")
