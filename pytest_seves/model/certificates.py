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

from ..spec.layout import Field, Layout
from .certificate_format import CERTIFICATE_SIZE

_USAGE_OCA = 0x1001
_USAGE_PEK = 0x1002
_USAGE_PDH = 0x1003
_USAGE_CEK = 0x1004
_USAGE_ASK = 0x0013
_USAGE_NONE = 0x1000
_ECDSA_SHA256 = 0x002
_ECDH_SHA256 = 0x003
_ECDSA_SHA384 = 0x102
_ECDH_SHA384 = 0x103
_CURVE_P384 = 2
_COORDINATE = 72
_SIGNED_SIZE = 0x414

CERTIFICATE = Layout(
    "sev_cert",
    CERTIFICATE_SIZE,
    Field("version", 0x000, "I"),
    Field("api_major", 0x004, "B"),
    Field("api_minor", 0x005, "B"),
    Field("_reserved_006", 0x006, "2s"),
    Field("pubkey_usage", 0x008, "I"),
    Field("pubkey_algo", 0x00C, "I"),
    Field("curve", 0x010, "I"),
    Field("qx", 0x014, "72s"),
    Field("qy", 0x05C, "72s"),
    Field("_reserved_0a4", 0x0A4, "880s"),
    Field("sig1_usage", 0x414, "I"),
    Field("sig1_algo", 0x418, "I"),
    Field("sig1_r", 0x41C, "72s"),
    Field("sig1_s", 0x464, "72s"),
    Field("_reserved_4ac", 0x4AC, "368s"),
    Field("sig2_usage", 0x61C, "I"),
    Field("sig2_algo", 0x620, "I"),
    Field("sig2_r", 0x624, "72s"),
    Field("sig2_s", 0x66C, "72s"),
    Field("_reserved_6b4", 0x6B4, "368s"),
)


class InvalidCertificate(ValueError):
    """The bytes are no certificate with an ECDH key on P-384."""


def _little(number: int) -> bytes:
    return number.to_bytes(_COORDINATE, "little")


def ecdh_public_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a guest owner's (or platform's) Diffie-Hellman certificate.

    :raise InvalidCertificate: wrong size, version, algorithm or curve, or the point is not on the curve.
    """
    if len(raw) != CERTIFICATE_SIZE:
        raise InvalidCertificate(f"wanted {CERTIFICATE_SIZE} bytes, got {len(raw)}")
    fields = CERTIFICATE.decode(raw)
    if fields["version"] != 1:
        raise InvalidCertificate(f"wanted version 1, got {fields['version']}")
    if fields["pubkey_algo"] not in (_ECDH_SHA256, _ECDH_SHA384) or fields["curve"] != _CURVE_P384:
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
        "version": 1,
        "api_major": api[0],
        "api_minor": api[1],
        "pubkey_usage": usage,
        "pubkey_algo": algorithm,
        "curve": _CURVE_P384,
        "qx": _little(point.x),
        "qy": _little(point.y),
        "sig1_usage": _USAGE_NONE,
        "sig2_usage": _USAGE_NONE,
    }
    signed = CERTIFICATE.encode(**values)[:_SIGNED_SIZE]
    for number, (signer_usage, signer) in enumerate(signers, 1):
        r, s = decode_dss_signature(signer.sign(signed, ec.ECDSA(hashes.SHA384())))
        values[f"sig{number}_usage"] = signer_usage
        values[f"sig{number}_algo"] = _ECDSA_SHA384
        values[f"sig{number}_r"] = _little(r)
        values[f"sig{number}_s"] = _little(s)
    return CERTIFICATE.encode(**values)


class PlatformKeys:
    """The keys of one platform, made when it is powered on, and their certificates."""

    def __init__(self, api: tuple[int, int]) -> None:
        ask, cek, oca, pek, self.pdh = (ec.generate_private_key(ec.SECP384R1()) for _ in range(5))
        self.pdh_certificate = certificate(self.pdh, _USAGE_PDH, _ECDH_SHA384, api, ((_USAGE_PEK, pek),))
        self.chain = (
            certificate(pek, _USAGE_PEK, _ECDSA_SHA384, api, ((_USAGE_OCA, oca), (_USAGE_CEK, cek)))
            + certificate(oca, _USAGE_OCA, _ECDSA_SHA384, api, ((_USAGE_OCA, oca),))
            + certificate(cek, _USAGE_CEK, _ECDSA_SHA384, api, ((_USAGE_ASK, ask),))
        )
