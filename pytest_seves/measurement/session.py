# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest owner's side of a launch: session, keys and secrets.

Source: SEV API (AMD 55766), LAUNCH_START, LAUNCH_SECRET and appendix C; checked against AMD's sev-tool.

The owner agrees on a secret with the platform by ECDH, wraps the transport keys TEK and TIK with keys derived
from it, and can then check that a measurement was made with that TIK. What is made here goes to QEMU as
``dh-cert-file`` and ``session-file``. The chain that vouches for the platform's key (PEK, CEK, AMD's keys) is
not checked: the lab owns the host. All is little-endian, except the ECDH secret, which is big-endian.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import EvidenceError
from pytest_seves.spec.certificate import (
    CERTIFICATE,
    CERTIFICATE_VERSION,
    CURVE_P384,
    ECDH_SHA256,
    ECDH_SHA384,
    USAGE_NONE,
    USAGE_PDH,
)
from pytest_seves.spec.sev import LAUNCH_SECRET_HEADER, LAUNCH_SESSION

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_ECDH = {ECDH_SHA256: "ECDH with SHA-256", ECDH_SHA384: "ECDH with SHA-384"}
_COORDINATE = 48
_KEY = 16

Random = Callable[[int], bytes]


@dataclass(frozen=True)
class Session:
    """One launch session; good for one launch, and only on the platform whose PDH it was made for.

    Neither ``repr`` nor anything else here prints the keys.
    """

    policy: int
    certificate: bytes
    blob: bytes
    tek: bytes = field(repr=False)
    tik: bytes = field(repr=False)

    @property
    def dh_cert_file(self) -> str:
        """Content of QEMU's ``dh-cert-file``: the owner's certificate (GODH) in base64."""
        return base64.b64encode(self.certificate).decode("ascii")

    @property
    def session_file(self) -> str:
        """Content of QEMU's ``session-file``: the session in base64."""
        return base64.b64encode(self.blob).decode("ascii")

    def seal(self, secret: bytes, measurement: bytes, *, random: Random = os.urandom) -> tuple[bytes, bytes]:
        """Packet header and encrypted secret for LAUNCH_SECRET.

        :param secret: a multiple of 16 bytes, not empty.
        :param measurement: the 32-byte HMAC of the launch that the secret is for.
        :raises ValueError: one of them has a wrong size.
        """
        if not secret or len(secret) % 16:
            raise ValueError(f"secret: wanted a multiple of 16 bytes, got {len(secret)}")
        if len(measurement) != 32:
            raise ValueError(f"measurement: wanted the HMAC alone, 32 bytes, got {len(measurement)}")
        iv = random(16)
        encrypted = _aes_ctr(self.tek, iv, secret)
        flags = bytes(4)  # not compressed
        length = len(secret).to_bytes(4, "little")
        mac = _hmac(self.tik, b"\x01" + flags + iv + length + length + encrypted + measurement)
        return LAUNCH_SECRET_HEADER.encode(iv=iv, mac=mac), encrypted


def create_session(pdh: bytes, policy: int, *, random: Random = os.urandom) -> Session:
    """A new session for the platform that has exported the certificate `pdh`, and for a guest policy.

    :param pdh: the platform's Diffie-Hellman certificate, 2084 bytes.
    :param random: source of keys, nonce and IV.
    :raises EvidenceError: `pdh` is not such a certificate.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    platform = public_key(pdh)
    own = ec.generate_private_key(ec.SECP384R1())
    shared = own.exchange(ec.ECDH(), platform)
    tek, tik = random(_KEY), random(_KEY)
    blob = wrap(shared, policy, tek, tik, nonce=random(16), iv=random(16))
    return Session(policy, certificate(own.public_key()), blob, tek, tik)


def public_key(pdh: bytes) -> EllipticCurvePublicKey:
    """The P-384 key of a PDH certificate.

    :raises EvidenceError: a field is not as it must be, or the point is not on the curve.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(pdh) != CERTIFICATE.size:
        raise _bad("size", f"{CERTIFICATE.size} bytes", f"{len(pdh)} bytes")
    fields = CERTIFICATE.decode(pdh)
    for name, wanted in (
        ("version", CERTIFICATE_VERSION),
        ("pubkey_usage", USAGE_PDH),
        ("curve", CURVE_P384),
    ):
        if fields[name] != wanted:
            raise _bad(name, f"{wanted:#x}", f"{fields[name]:#x}")
    if fields["pubkey_algo"] not in _ECDH:
        raise _bad("pubkey_algo", f"one of {', '.join(map(hex, _ECDH))}", f"{fields['pubkey_algo']:#x}")
    x, y = (int.from_bytes(fields[name], "little") for name in ("qx", "qy"))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    except ValueError as error:
        raise _bad("public key", "a point of P-384", str(error)) from error


def certificate(key: EllipticCurvePublicKey) -> bytes:
    """An unsigned SEV certificate for an ECDH key: nobody vouches for a guest owner (GODH)."""
    numbers = key.public_numbers()
    unsigned: dict[str, Any] = {"usage": USAGE_NONE}
    return CERTIFICATE.encode(
        version=CERTIFICATE_VERSION,
        pubkey_usage=USAGE_PDH,
        pubkey_algo=ECDH_SHA256,
        curve=CURVE_P384,
        qx=numbers.x.to_bytes(_COORDINATE, "little").ljust(72, b"\0"),
        qy=numbers.y.to_bytes(_COORDINATE, "little").ljust(72, b"\0"),
        sig1=unsigned,
        sig2=unsigned,
    )


def wrap(shared: bytes, policy: int, tek: bytes, tik: bytes, *, nonce: bytes, iv: bytes) -> bytes:
    """The session blob: TEK and TIK, wrapped with keys derived from the ECDH secret, and MACs."""
    master = derive(shared, "sev-master-secret", nonce)
    kek, kik = derive(master, "sev-kek"), derive(master, "sev-kik")
    wrapped = _aes_ctr(kek, iv, tek + tik)
    return LAUNCH_SESSION.encode(
        nonce=nonce,
        wrap_tk=wrapped,
        wrap_iv=iv,
        wrap_mac=_hmac(kik, wrapped),
        policy_mac=_hmac(tik, policy.to_bytes(4, "little")),
    )


def derive(key: bytes, label: str, context: bytes = b"") -> bytes:
    """A 128-bit key by NIST SP 800-108: counter mode, HMAC-SHA256, little-endian numbers."""
    fixed = label.encode("ascii") + b"\0" + context + (8 * _KEY).to_bytes(4, "little")
    return _hmac(key, (1).to_bytes(4, "little") + fixed)[:_KEY]


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _bad(what: str, wanted: str, got: str) -> EvidenceError:
    text = f"PDH certificate: {what}: wanted {wanted}; got {got}"
    return EvidenceError(text, field=what, wanted=wanted, got=got)
