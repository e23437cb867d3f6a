# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of bundles made by hand, and a key to sign them with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pytest_seves.evidence.bundle import Bundle
from pytest_seves.report import qualify
from pytest_seves.report.signature import private_key
from tests.report import bundles

Json = dict[str, Any]
Make = Callable[..., Json]


@dataclass(frozen=True)
class Keys:
    """Files of one key pair."""

    private: Path
    public: Path


def write_keys(folder: Path, passphrase: bytes = b"") -> Keys:
    """A new ed25519 key pair, as openssl writes it."""
    key = Ed25519PrivateKey.generate()
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Keys(private, public)


def no_passphrase() -> bytes:
    """Stands for a terminal that must not be asked."""
    raise AssertionError("nothing is encrypted here, so nobody is asked")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The signer's keys."""
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Factory: the document of a bundle that differs as told from a whole run on a machine."""

    def made(**changes: Any) -> Json:
        root = bundles.write(tmp_path / "report" / "evidence", **changes)
        return qualify.write(Bundle.open(root), tmp_path / "report", None)

    return made


@pytest.fixture(scope="session")
def signed_once(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A signed report with its bundle, to be copied."""
    folder = tmp_path_factory.mktemp("signed") / "report"
    root = bundles.write(folder / "evidence")
    qualify.write(Bundle.open(root), folder, private_key(keys.private, no_passphrase))
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A signed report of a test's own, to be changed."""
    return Path(shutil.copytree(signed_once, tmp_path / "handed-over"))
