# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV certificates: the 2084-byte format of the SEV API (55766, appendix C), and the platform's own chain.

The chain is PDH <- PEK <- OCA and CEK. A real CEK is signed by AMD's ASK; the model signs it with a key
of its own that nobody vouches for, so no tool that checks against AMD's roots accepts the model as an AMD
platform.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ..spec.certificate import (
    CERTIFICATE,
    CERTIFICATE_VERSION,
    CURVE_P384,
    ECDH_SHA256,
    ECDH_SHA384,
    ECDSA_SHA384,
    SIGNED_SIZE,
    USAGE_ASK,
    USAGE_CEK,
    USAGE_NONE,
    USAGE_OCA,
    USAGE_PDH,
    USAGE_PEK,
)

_COORDINATE = 72


class InvalidCertificate(ValueError):
    """The bytes are no certificate with an ECDH key on P-384."""


def _little(number: int) -> bytes:
    return number.to_bytes(_COORDINATE, "little")


def ecdh_public_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a guest owner's (or platform's) Diffie-Hellman certificate.

    :raise InvalidCertificate: wrong size, version, algorithm or curve, or the point is not on the curve.
    """
    if len(raw) != CERTIFICATE.size:
        raise InvalidCertificate(f"wanted {CERTIFICATE.size} bytes, got {len(raw)}")
    fields = CERTIFICATE.decode(raw)
    if fields["version"] != CERTIFICATE_VERSION:
        raise InvalidCertificate(f"wanted version {CERTIFICATE_VERSION}, got {fields['version']}")
    if fields["pubkey_algo"] not in (ECDH_SHA256, ECDH_SHA384) or fields["curve"] != CURVE_P384:
        got = f"algorithm {fields['pubkey_algo']:#x}, curve {fields['curve']}"
        raise InvalidCertificate(f"wanted an ECDH key on P-384, got {got}")
    x = int.from_bytes(fields["qx"], "little")
    y = int.from_bytes(fields["qy"], "little")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    except ValueError as error:
        raise InvalidCertificate(str(error)) from None


def certificate(
    key: ec.EllipticCurvePrivateKey,
    usage: int,
    algorithm: int,
    api: tuple[int, int],
    signers: tuple[tuple[int, ec.EllipticCurvePrivateKey], ...],
) -> bytes:
    """A certificate of `key`'s public half, signed by up to two (usage, key)."""
    point = key.public_key().public_numbers()
    values: dict[str, object] = {
        "version": CERTIFICATE_VERSION,
        "api_major": api[0],
        "api_minor": api[1],
        "pubkey_usage": usage,
        "pubkey_algo": algorithm,
        "curve": CURVE_P384,
        "qx": _little(point.x),
        "qy": _little(point.y),
        "sig1": {"usage": USAGE_NONE},
        "sig2": {"usage": USAGE_NONE},
    }
    signed = CERTIFICATE.encode(**values)[:SIGNED_SIZE]
    for number, (signer_usage, signer) in enumerate(signers, 1):
        r, s = decode_dss_signature(signer.sign(signed, ec.ECDSA(hashes.SHA384())))
        values[f"sig{number}"] = {
            "usage": signer_usage,
            "algo": ECDSA_SHA384,
            "r": _little(r),
            "s": _little(s),
        }
    return CERTIFICATE.encode(**values)


class PlatformKeys:
    """The keys of one platform, made when it is powered on, and their certificates."""

    def __init__(self, api: tuple[int, int]) -> None:
        ask, cek, oca, pek, self.pdh = (ec.generate_private_key(ec.SECP384R1()) for _ in range(5))
        self.pdh_certificate = certificate(self.pdh, USAGE_PDH, ECDH_SHA384, api, ((USAGE_PEK, pek),))
        self.chain = (
            certificate(pek, USAGE_PEK, ECDSA_SHA384, api, ((USAGE_OCA, oca), (USAGE_CEK, cek)))
            + certificate(oca, USAGE_OCA, ECDSA_SHA384, api, ((USAGE_OCA, oca),))
            + certificate(cek, USAGE_CEK, ECDSA_SHA384, api, ((USAGE_ASK, ask),))
        )
