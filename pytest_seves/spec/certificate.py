# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV certificates, version 1, with an ECC key.

Source: SEV API (AMD 55766), appendix C. All fields are little-endian, coordinates and signatures too; the RSA
form of key and signature is longer, hence what is reserved.
"""

from __future__ import annotations

from .layout import Field, Layout

CERTIFICATE_VERSION = 1
CURVE_P384 = 2

USAGE_ASK = 0x0013
USAGE_NONE = 0x1000
USAGE_OCA = 0x1001
USAGE_PEK = 0x1002
USAGE_PDH = 0x1003
USAGE_CEK = 0x1004

ECDSA_SHA256 = 0x002
ECDH_SHA256 = 0x003
ECDSA_SHA384 = 0x102
ECDH_SHA384 = 0x103

#: A signature slot with an ECDSA signature.
SIGNATURE = Layout(
    "signature",
    520,
    Field("usage", 0x000, "I"),
    Field("algo", 0x004, "I"),
    Field("r", 0x008, "72s"),
    Field("s", 0x050, "72s"),
    Field("_reserved_098", 0x098, "368s"),
)
CERTIFICATE = Layout(
    "sev_cert",
    2084,
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
    Field("sig1", 0x414, SIGNATURE),
    Field("sig2", 0x61C, SIGNATURE),
)
#: What the signatures are over: all before them.
SIGNED_SIZE = 0x414
#: PEK, OCA, CEK: the chain that PDH_CERT_EXPORT gives.
CHAIN_SIZE = 3 * CERTIFICATE.size
