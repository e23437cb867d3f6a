# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest owner's session: what a platform must be able to read out of it."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_seves.errors import EvidenceError
from pytest_seves.measurement import session
from pytest_seves.measurement.session import create_session
from pytest_seves.spec.certificate import CERTIFICATE
from pytest_seves.spec.sev import LAUNCH_SECRET_HEADER, LAUNCH_SESSION

PLATFORM = ec.derive_private_key(0x5E5, ec.SECP384R1())
PDH = session.certificate(PLATFORM.public_key())


def damaged(**fields: object) -> bytes:
    """The platform's certificate with other values in some fields."""
    return CERTIFICATE.encode(**{**CERTIFICATE.decode(PDH), **fields})


@pytest.mark.parametrize(
    ("pdh", "wanted"),
    [
        (b"", "size: wanted 2084 bytes; got 0 bytes"),
        (PDH + b"\0", "size: wanted 2084 bytes; got 2085 bytes"),
        (damaged(version=2), "version: wanted 0x1; got 0x2"),
        (damaged(pubkey_usage=0x1002), "pubkey_usage: wanted 0x1003; got 0x1002"),
        (damaged(pubkey_algo=2), "pubkey_algo: wanted one of 0x3, 0x103; got 0x2"),
        (damaged(curve=1), "curve: wanted 0x2; got 0x1"),
        (damaged(qx=bytes(72)), "public key: wanted a point of P-384"),
        (damaged(qy=b"\xff" * 72), "public key: wanted a point of P-384"),
    ],
)
def test_another_certificate_is_refused(pdh: bytes, wanted: str) -> None:
    """A session for a wrong key would only fail at the launch, as a firmware error."""
    with pytest.raises(EvidenceError, match="PDH certificate: ") as caught:
        create_session(pdh, 5)
    assert wanted in str(caught.value)


@settings(deadline=None)  # shared machines stall
@given(raw=st.binary(min_size=2084, max_size=2084))
def test_no_bytes_can_do_more_than_be_refused(raw: bytes) -> None:
    """Whatever the platform exports: a key, or an EvidenceError."""
    with pytest.raises(EvidenceError):
        create_session(raw, 5)


@pytest.mark.parametrize(
    ("secret", "measurement"), [(b"", b"m" * 32), (b"s" * 15, b"m" * 32), (b"s" * 16, b"m" * 48)]
)
def test_a_secret_of_a_wrong_size_is_refused(secret: bytes, measurement: bytes) -> None:
    """Whole blocks only, and the HMAC without its nonce."""
    with pytest.raises(ValueError, match="wanted"):
        create_session(PDH, 5).seal(secret, measurement)


def test_repr_keeps_the_keys() -> None:
    """A session that is printed, logged or shown by an assertion gives nothing away."""
    letters = iter(b"EINV")
    made = create_session(PDH, 5, random=lambda size: bytes([next(letters)] * size))
    assert (made.tek, made.tik) == (b"E" * 16, b"I" * 16)
    assert "VVVV" in repr(made), "the IV is no secret"
    assert "EEEE" not in repr(made)
    assert "IIII" not in repr(made)
    assert "tek" not in repr(made)


def test_the_key_derivation_matches_the_published_vector() -> None:
    """Oracle: unit test `derive` of the sev crate (virtee/sev 9cf2adb, src/session/key.rs)."""
    assert (
        session.derive(bytes(16), "sev-master-secret", bytes(16)).hex() == "ab4d269fcc62bedb4511d56c386ce706"
    )


def test_the_session_blob_matches_the_published_vector() -> None:
    """Oracle: unit test `session` of the sev crate (virtee/sev 9cf2adb, src/session/mod.rs), all zero."""
    blob = session.wrap(bytes(16), 0, bytes(16), bytes(16), nonce=bytes(16), iv=bytes(16))
    assert {name: value.hex() for name, value in LAUNCH_SESSION.decode(blob).items()} == {
        "nonce": "00" * 16,
        "wrap_tk": "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4",
        "wrap_iv": "00" * 16,
        "wrap_mac": "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d",
        "policy_mac": "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af",
    }


def test_the_certificate_has_the_documents_layout() -> None:
    """SEV API appendix C: version 1, PDH, ECDH-SHA256, P-384, little-endian, no signature."""
    numbers = PLATFORM.public_key().public_numbers()
    assert len(PDH) == 2084
    assert PDH[:20].hex() == "0100000000000000031000000300000002000000"
    assert int.from_bytes(PDH[20:92], "little") == numbers.x
    assert int.from_bytes(PDH[92:164], "little") == numbers.y
    assert PDH[164:1044] == bytes(880)
    assert PDH[1044:1564] == PDH[1564:2084] == b"\x00\x10\x00\x00" + bytes(516)


@pytest.mark.parametrize("policy", [0, 0x5, 0x37_01_00_05, 0xFFFFFFFF])
def test_the_platform_reads_the_keys_back(policy: int) -> None:
    """The platform finds TEK and TIK, and MACs that hold for this policy and no other."""
    made = create_session(PDH, policy)
    godh = base64.b64decode(made.dh_cert_file, validate=True)
    fields = LAUNCH_SESSION.decode(base64.b64decode(made.session_file, validate=True))
    shared = PLATFORM.exchange(ec.ECDH(), session.public_key(godh))
    master = session.derive(shared, "sev-master-secret", fields["nonce"])
    kek, kik = session.derive(master, "sev-kek"), session.derive(master, "sev-kik")
    decryptor = Cipher(algorithms.AES(kek), modes.CTR(fields["wrap_iv"])).decryptor()
    assert decryptor.update(fields["wrap_tk"]) == made.tek + made.tik
    assert hmac.digest(kik, fields["wrap_tk"], hashlib.sha256) == fields["wrap_mac"]
    assert hmac.digest(made.tik, policy.to_bytes(4, "little"), hashlib.sha256) == fields["policy_mac"]
    assert hmac.digest(made.tik, (policy ^ 1).to_bytes(4, "little"), hashlib.sha256) != fields["policy_mac"]


def test_no_two_sessions_share_anything() -> None:
    """Keys, nonce, IV and the owner's key pair are new each time."""
    first, second = create_session(PDH, 5), create_session(PDH, 5)
    one, two = (LAUNCH_SESSION.decode(made.blob) for made in (first, second))
    assert not {first.tek, first.tik, first.certificate} & {second.tek, second.tik, second.certificate}
    assert not set(one.values()) & set(two.values())


def test_a_sealed_secret_opens_with_the_session() -> None:
    """The MAC covers kind, flags, IV, both lengths, data and measurement, in this order."""
    made, measurement, secret = create_session(PDH, 5), bytes(range(32)), b"open sesame 16 b" * 2
    header, encrypted = made.seal(secret, measurement)
    fields = LAUNCH_SECRET_HEADER.decode(header)
    covered = b"\x01" + bytes(4) + fields["iv"] + (32).to_bytes(4, "little") * 2 + encrypted + measurement
    assert len(header) == 52
    assert fields["flags"] == 0
    assert hmac.digest(made.tik, covered, hashlib.sha256) == fields["mac"]
    assert Cipher(algorithms.AES(made.tek), modes.CTR(fields["iv"])).decryptor().update(encrypted) == secret
