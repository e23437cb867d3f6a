# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch sessions and secrets, made here as a guest owner makes them."""

from __future__ import annotations

import hmac
import os
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA384

from pytest_seves.model import certificates, encryption
from pytest_seves.model.firmware import Firmware
from pytest_seves.model.firmware_config import FirmwareConfig
from pytest_seves.model.firmware_error import FirmwareError
from pytest_seves.spec.certificate import CERTIFICATE
from pytest_seves.spec.sev import FirmwareStatus

POLICY = 5
TEK, TIK = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture
def firmware() -> Firmware:
    """An initialised platform."""
    return Firmware(FirmwareConfig(1, 55, 24, es=True, es_asids=3, asids=10))


def owner(firmware: Firmware, *, policy: int = POLICY) -> tuple[bytes, bytes]:
    """A guest owner's certificate and session for the platform."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = certificates.certificate(key, 0x1003, 0x103, (1, 55), ())
    platform = certificates.ecdh_public_key(firmware.keys.pdh_certificate)
    nonce, iv = os.urandom(16), os.urandom(16)
    master = derived(key.exchange(ec.ECDH(), platform), b"sev-master-secret", nonce)
    kek, kik = derived(master, b"sev-kek", b""), derived(master, b"sev-kik", b"")
    context = Cipher(algorithms.AES(kek), modes.CTR(iv)).encryptor()
    wrapped = context.update(TEK + TIK) + context.finalize()
    mac = hmac.digest(kik, wrapped, "sha256")
    policy_mac = hmac.digest(TIK, struct.pack("<I", policy), "sha256")
    return certificate, nonce + wrapped + iv + mac + policy_mac


def derived(key: bytes, label: bytes, context: bytes) -> bytes:
    """One 128-bit block."""
    message = b"\1\0\0\0" + label + b"\0" + context + struct.pack("<I", 128)
    return hmac.digest(key, message, "sha256")[:16]


def status_of(firmware: Firmware, certificate: bytes, session: bytes) -> FirmwareStatus:
    """What LAUNCH_START fails with."""
    with pytest.raises(FirmwareError) as caught:
        firmware.launch_start(POLICY, certificate, session)
    return caught.value.status


@pytest.mark.parametrize(
    "place", [0, 16, 48, 64, 96], ids=["nonce", "wrap_tk", "wrap_iv", "wrap_mac", "policy_mac"]
)
def test_altered_session_is_refused(firmware: Firmware, place: int) -> None:
    """Every byte of the session is under a MAC."""
    certificate, session = owner(firmware)
    altered = bytearray(session)
    altered[place] ^= 1
    assert status_of(firmware, certificate, bytes(altered)) is FirmwareStatus.BAD_MEASUREMENT


def test_session_for_another_policy_is_refused(firmware: Firmware) -> None:
    """The host cannot launch with a weaker policy than the owner signed."""
    certificate, session = owner(firmware, policy=4)
    assert status_of(firmware, certificate, session) is FirmwareStatus.BAD_MEASUREMENT


def test_session_for_another_platform_is_refused(firmware: Firmware) -> None:
    """Only the platform whose PDH was used derives the keys."""
    other = Firmware(firmware.config)
    assert status_of(other, *owner(firmware)) is FirmwareStatus.BAD_MEASUREMENT


def test_session_without_certificate_is_refused(firmware: Firmware) -> None:
    """There is nothing to agree a key with."""
    _, session = owner(firmware)
    assert status_of(firmware, b"", session) is FirmwareStatus.INVALID_CERTIFICATE


def test_certificate_of_the_wrong_kind_is_refused(firmware: Firmware) -> None:
    """An ECDSA certificate holds no Diffie-Hellman key."""
    _, session = owner(firmware)
    pek = firmware.keys.chain[:2084]
    assert status_of(firmware, pek, session) is FirmwareStatus.INVALID_CERTIFICATE


def test_truncated_session_is_refused(firmware: Firmware) -> None:
    """The session has one size."""
    certificate, session = owner(firmware)
    assert status_of(firmware, certificate, session[:-1]) is FirmwareStatus.INVALID_LEN


def test_session_gives_the_owners_keys(firmware: Firmware) -> None:
    """TEK and TIK arrive as the owner chose them."""
    handle = firmware.launch_start(POLICY, *owner(firmware))
    assert (firmware.guests[handle].tek, firmware.guests[handle].tik) == (TEK, TIK)


def packet(measurement: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """A LAUNCH_SECRET header and its ciphertext."""
    iv = os.urandom(16)
    context = Cipher(algorithms.AES(TEK), modes.CTR(iv)).encryptor()
    data = context.update(secret) + context.finalize()
    lengths = struct.pack("<II", len(secret), len(data))
    mac = hmac.digest(TIK, b"\1" + bytes(4) + iv + lengths + data + measurement, "sha256")
    return bytes(4) + iv + mac, data


def test_secret_for_another_measurement_is_refused(firmware: Firmware) -> None:
    """A packet is bound to what was measured."""
    handle = firmware.launch_start(POLICY, *owner(firmware))
    firmware.activate(handle, 1)
    firmware.launch_measure(handle, 48)
    header, data = packet(bytes(32), bytes(16))
    with pytest.raises(FirmwareError, match="BAD_MEASUREMENT"):
        firmware.launch_secret(handle, 0x1000, 16, header, data)


def test_secret_arrives_encrypted_for_the_guest(firmware: Firmware) -> None:
    """The secret lands in guest memory as the guest's ciphertext."""
    handle = firmware.launch_start(POLICY, *owner(firmware))
    firmware.activate(handle, 1)
    measurement = firmware.launch_measure(handle, 48)[:32]
    header, data = packet(measurement, b"sixteen secrets!")
    stored = firmware.launch_secret(handle, 0x1000, 16, header, data)
    assert encryption.decrypt(firmware.guests[handle].key, 0x1000, stored) == b"sixteen secrets!"


def test_platform_chain_verifies(firmware: Firmware) -> None:
    """The PDH certificate carries a valid ECDSA signature of the PEK."""
    pdh = firmware.keys.pdh_certificate
    fields = CERTIFICATE.decode(pdh)
    pek = CERTIFICATE.decode(firmware.keys.chain[:2084])
    point = [int.from_bytes(pek[name], "little") for name in ("qx", "qy")]
    r, s = (int.from_bytes(fields["sig1"][name], "little") for name in ("r", "s"))
    key = ec.EllipticCurvePublicNumbers(point[0], point[1], ec.SECP384R1()).public_key()
    key.verify(encode_dss_signature(r, s), pdh[:0x414], ec.ECDSA(SHA384()))
