# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest owner's launch session and secrets, as the firmware checks them.

Source: SEV API (55766), LAUNCH_START and LAUNCH_SECRET; key derivation is NIST SP 800-108 in counter mode
with HMAC-SHA256, 32-bit little-endian counter and length.
"""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..spec.sev import LAUNCH_SECRET_HEADER, LAUNCH_SESSION, FirmwareStatus
from .certificates import InvalidCertificate, ecdh_public_key
from .firmware_error import FirmwareError

KEY_SIZE = 16


def derive(key: bytes, label: bytes, context: bytes) -> bytes:
    """A 128-bit key from `key`."""
    message = struct.pack("<I", 1) + label + b"\0" + context + struct.pack("<I", KEY_SIZE * 8)
    return hmac.digest(key, message, "sha256")[:KEY_SIZE]


def aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR; its own inverse."""
    context = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return context.update(data) + context.finalize()


def unwrap(
    pdh: ec.EllipticCurvePrivateKey, owner_certificate: bytes, session: bytes, policy: int
) -> tuple[bytes, bytes]:
    """TEK and TIK that the guest owner chose.

    :raise FirmwareError: INVALID_CERTIFICATE, INVALID_LEN, or BAD_MEASUREMENT when either MAC is wrong.
    """
    try:
        public = ecdh_public_key(owner_certificate)
    except InvalidCertificate:
        raise FirmwareError(FirmwareStatus.INVALID_CERTIFICATE) from None
    if len(session) != LAUNCH_SESSION.size:
        raise FirmwareError(FirmwareStatus.INVALID_LEN)
    fields = LAUNCH_SESSION.decode(session)
    master = derive(pdh.exchange(ec.ECDH(), public), b"sev-master-secret", fields["nonce"])
    kek = derive(master, b"sev-kek", b"")
    kik = derive(master, b"sev-kik", b"")
    if not hmac.compare_digest(hmac.digest(kik, fields["wrap_tk"], "sha256"), fields["wrap_mac"]):
        raise FirmwareError(FirmwareStatus.BAD_MEASUREMENT)
    keys = aes_ctr(kek, fields["wrap_iv"], fields["wrap_tk"])
    tek, tik = keys[:KEY_SIZE], keys[KEY_SIZE:]
    if not hmac.compare_digest(hmac.digest(tik, struct.pack("<I", policy), "sha256"), fields["policy_mac"]):
        raise FirmwareError(FirmwareStatus.BAD_MEASUREMENT)
    return tek, tik


def open_secret(
    header: bytes, ciphertext: bytes, guest_length: int, tek: bytes, tik: bytes, measurement: bytes
) -> bytes:
    """The secret of a LAUNCH_SECRET packet, `guest_length` bytes.

    :param measurement: the 32-byte HMAC that LAUNCH_MEASURE gave.
    :raise FirmwareError: INVALID_LEN, UNSUPPORTED (compressed), BAD_MEASUREMENT.
    """
    if len(header) != LAUNCH_SECRET_HEADER.size:
        raise FirmwareError(FirmwareStatus.INVALID_LEN)
    if guest_length % 16 or not 0 < guest_length <= 16384 or len(ciphertext) != guest_length:
        raise FirmwareError(FirmwareStatus.INVALID_LEN)
    fields = LAUNCH_SECRET_HEADER.decode(header)
    if fields["flags"] & 1:
        raise FirmwareError(FirmwareStatus.UNSUPPORTED)
    message = (
        struct.pack("<BI", 1, fields["flags"])
        + fields["iv"]
        + struct.pack("<II", guest_length, len(ciphertext))
        + ciphertext
        + measurement
    )
    if not hmac.compare_digest(hmac.digest(tik, message, "sha256"), fields["mac"]):
        raise FirmwareError(FirmwareStatus.BAD_MEASUREMENT)
    return aes_ctr(tek, fields["iv"], ciphertext)
