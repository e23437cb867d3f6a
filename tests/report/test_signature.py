# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys and envelopes: a key that others can read is refused, and the signature is one that openssl checks."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_seves.errors import EvidenceError, UsageError
from pytest_seves.report import commands
from pytest_seves.report.signature import opened, private_key, public_key, sign
from tests.report.conftest import Keys, no_passphrase, write_keys

SUBJECTS = {"report.json": "0" * 64}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With its mode, and what to do."""
    file = write_keys(tmp_path).private
    file.chmod(mode)
    with pytest.raises(UsageError, match=rf"others may read this key \(mode {mode:04o}.*chmod 600"):
        private_key(file, no_passphrase)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """With what makes one."""
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="openssl genpkey -algorithm ed25519"):
        private_key(file, no_passphrase)


def test_a_key_that_is_not_there_and_one_that_is_no_file(tmp_path: Path) -> None:
    """A directory or a missing file is named, and nothing hangs."""
    with pytest.raises(UsageError, match="No such file"):
        private_key(tmp_path / "none.pem", no_passphrase)
    with pytest.raises(UsageError, match="wanted a file"):
        private_key(tmp_path, no_passphrase)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    """An EC key of openssl's is no ed25519 key, either half."""
    file, public = tmp_path / "ec.pem", tmp_path / "ec.pub"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(file))
    openssl("pkey", "-in", str(file), "-pubout", "-out", str(public))
    file.chmod(0o600)
    with pytest.raises(UsageError, match="wanted an ed25519 key"):
        private_key(file, no_passphrase)
    with pytest.raises(UsageError, match="wanted an ed25519 key"):
        public_key(public)


def test_an_encrypted_key_asks_for_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an environment variable; a wrong one, a missing one and no terminal are told apart."""
    file = write_keys(tmp_path, b"open sesame").private
    monkeypatch.setenv("KEY", "open sesame")
    monkeypatch.setenv("WRONG", "open says me")
    assert commands.signer(file, "KEY", "--x").public_key.keytype == "ed25519"
    for variable, said in (
        ("WRONG", "does not open"),
        ("NONE", "no such environment"),
        (None, "--x NAME names"),
    ):
        with pytest.raises(UsageError, match=said):
            commands.signer(file, variable, "--x")


def test_the_key_id_is_what_openssl_makes(keys: Keys) -> None:
    """SHA-256 of the public key in DER."""
    der = openssl("pkey", "-in", str(keys.private), "-pubout", "-outform", "DER")
    digest = subprocess.run(["sha256sum"], input=der, stdout=subprocess.PIPE, check=True).stdout.split()[0]
    assert public_key(keys.public).keyid == digest.decode()
    assert private_key(keys.private, no_passphrase).public_key.keyid == digest.decode()


def test_openssl_checks_the_signature(keys: Keys, tmp_path: Path) -> None:
    """Over DSSE's encoding, put together here by hand, with the key as openssl reads it."""
    envelope = json.loads(sign(SUBJECTS, {"x": 1}, private_key(keys.private, no_passphrase)))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed, signature = tmp_path / "signed", tmp_path / "signature"
    signed.write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    signature.write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    files = ["-in", str(signed), "-sigfile", str(signature)]
    said = openssl("pkeyutl", "-verify", "-pubin", "-inkey", str(keys.public), "-rawin", *files)
    assert b"Verified Successfully" in said
    statement = json.loads(payload)
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "pytest-seves:qualification/v1",
    )
    assert statement["subject"] == [{"name": "report.json", "digest": {"sha256": "0" * 64}}]


def test_every_changed_byte_of_an_envelope_is_found(keys: Keys) -> None:
    """Each byte of it in turn: what was signed, by whom, and how it is written down."""
    content, key = sign(SUBJECTS, {}, private_key(keys.private, no_passphrase)), public_key(keys.public)
    assert opened(content, key)["predicate"] == {}
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        with pytest.raises(EvidenceError):
            opened(bytes(changed), key)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"payload": 1}', b"\xff", b"[" * 100_000, b'"' + b"a" * 9]
)
def test_what_is_no_envelope_is_refused(keys: Keys, content: bytes) -> None:
    """Whatever it is, by one kind of error."""
    with pytest.raises(EvidenceError, match="no DSSE envelope"):
        opened(content, public_key(keys.public))


def openssl(*words: str) -> bytes:
    """Run it; what it printed."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on this machine")
    return subprocess.run([program, *words], capture_output=True, check=True).stdout
