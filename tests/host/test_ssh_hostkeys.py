# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinned host keys: parsing known_hosts and judging a presented key; ssh-keygen is the oracle."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import HostKeyChanged, HostKeyUnknown
from pytest_seves.host.hostkeys import (
    HostKey,
    Pins,
    check,
    parse_key,
    pins_from_inventory,
    pins_from_known_hosts,
)

BLOB = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)
KEY = HostKey("ssh-ed25519", BLOB)
OTHER = HostKey("ssh-ed25519", BLOB[:-1] + b"\x01")


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    """Where a test writes its known_hosts file."""
    return tmp_path / "known_hosts"


@pytest.mark.parametrize(
    "text",
    ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-ed25519 AAAA", f"ssh-rsa {base64.b64encode(BLOB).decode()}"],
    ids=["empty", "no-data", "no-base64", "too-short", "types-disagree"],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """A key is a type and base64 that agree with each other."""
    with pytest.raises(ValueError, match=r"wanted|not base64|the key says"):
        parse_key(text)


@given(st.binary(max_size=100))
def test_keys_round_trip(rest: bytes) -> None:
    """What a key prints parses as that key."""
    key = HostKey("ssh-ed25519", b"\x00\x00\x00\x0bssh-ed25519" + rest)
    assert parse_key(str(key)) == key


@given(st.text())
def test_no_known_hosts_file_crashes_the_parser(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a known_hosts file holds, it pins keys or nothing."""
    path = tmp_path_factory.getbasetemp() / "fuzzed_known_hosts"
    path.write_text(text, encoding="utf-8", errors="replace")
    pins_from_known_hosts(path, "lab1", 22)


@pytest.mark.parametrize(
    ("line", "port", "found"),
    [
        ("lab1 {key}", 22, True),
        ("lab1,10.0.0.1 {key} comment", 22, True),
        ("LAB1 {key}", 22, True),
        ("lab? {key}", 22, True),
        ("*1 {key}", 22, True),
        ("[lab1]:2222 {key}", 2222, True),
        ("lab1 {key}", 2222, False),
        ("[lab1]:2222 {key}", 22, False),
        ("lab*,!lab1 {key}", 22, False),
        ("lab11 {key}", 22, False),
        ("# lab1 {key}", 22, False),
        ("@cert-authority lab1 {key}", 22, False),
        ("|1|nonsense {key}", 22, False),
        ("lab1 ssh-ed25519 damaged", 22, False),
    ],
)
def test_known_hosts_names(known_hosts: Path, line: str, port: int, found: bool) -> None:
    """Names, wildcards, negations and ports match as in OpenSSH; what is damaged vouches for nothing."""
    known_hosts.write_text(line.format(key=KEY) + "\n")
    assert pins_from_known_hosts(known_hosts, "lab1", port).trusted == ((KEY,) if found else ())


@pytest.mark.parametrize("port", [22, 2222])
def test_hashed_names(known_hosts: Path, port: int) -> None:
    """A name that ssh-keygen -H hashed is found."""
    name = "lab1" if port == 22 else f"[lab1]:{port}"
    known_hosts.write_text(f"{name} {KEY}\n")
    subprocess.run([shutil.which("ssh-keygen") or "", "-q", "-H", "-f", known_hosts], check=True)
    assert "lab1" not in known_hosts.read_text()
    assert pins_from_known_hosts(known_hosts, "lab1", port).trusted == (KEY,)


def test_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    """Fingerprints read as ssh-keygen -l prints them."""
    (tmp_path / "key.pub").write_text(f"{KEY}\n")
    listed = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], stdout=subprocess.PIPE, check=True)
    assert KEY.fingerprint in listed.stdout.decode().split()


def test_a_missing_known_hosts_file_pins_nothing(known_hosts: Path) -> None:
    """Without the file no key is known, which is not an error of its own."""
    assert pins_from_known_hosts(known_hosts, "lab1", 22) == Pins((), (), str(known_hosts))


def test_an_unknown_key_is_refused_with_what_to_do() -> None:
    """Without a pin the message gives the fingerprint, where a pin was looked for and the line to add."""
    with pytest.raises(HostKeyUnknown) as caught:
        check(KEY, Pins((), (), "known_hosts"), "host 10.0.0.1:22", "lab1")
    for part in ("lab1", "10.0.0.1:22", KEY.fingerprint, "known_hosts", f'host_key = "{KEY}"'):
        assert part in str(caught.value)


def test_another_key_than_pinned_is_refused() -> None:
    """The message shows the pinned and the presented fingerprint."""
    with pytest.raises(HostKeyChanged) as caught:
        check(OTHER, pins_from_inventory(str(KEY), "lab1.toml"), "host lab1:22", "lab1")
    for part in (KEY.fingerprint, OTHER.fingerprint, "lab1.toml"):
        assert part in str(caught.value)


def test_a_revoked_key_is_refused_even_if_it_is_pinned(known_hosts: Path) -> None:
    """@revoked wins over a pin."""
    known_hosts.write_text(f"lab1 {KEY}\n@revoked * {KEY}\n")
    with pytest.raises(HostKeyChanged, match="revoked"):
        check(KEY, pins_from_known_hosts(known_hosts, "lab1", 22), "host lab1:22", "lab1")


def test_several_pinned_keys() -> None:
    """One key per line: any of them is accepted."""
    pins = pins_from_inventory(f"{KEY}\n\n{OTHER}\n", "lab1.toml")
    check(KEY, pins, "host lab1:22", "lab1")
    check(OTHER, pins, "host lab1:22", "lab1")
    assert pins.types == ("ssh-ed25519",)
