# SPDX-License-Identifier: GPL-2.0-or-later
"""A model host for the tests of the model, reached with the system's ssh client only."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.host import ModelHost
from tests.model.driving import QEMU, Guest, Ssh, qemu_command, ssh_argv


@pytest.fixture(scope="session")
def host() -> Iterator[ModelHost]:
    """A model host as a plain user of the project starts it."""
    for program in ("sshd", "ssh"):
        if shutil.which(program, path="/usr/bin:/usr/sbin:/bin:/sbin") is None:
            pytest.skip(f"{program} is not installed")
    with ModelHost.start() as running:
        yield running


@pytest.fixture
def ssh(host: ModelHost) -> Ssh:
    """Run one command on the model host."""

    def run(command: str, on: ModelHost = host) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ssh_argv(on, command),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


@pytest.fixture
def launch(host: ModelHost) -> Iterator[Callable[..., Guest]]:
    """Start a QEMU on the model host; ended with the test."""
    if shutil.which(QEMU) is None or not Path("/usr/share/ovmf/OVMF.fd").exists():
        pytest.skip("QEMU or OVMF is not installed")
    guests: list[Guest] = []

    def start(on: ModelHost = host, **options: Any) -> Guest:
        guests.append(Guest(on, qemu_command(**options)))
        return guests[-1]

    yield start
    for guest in guests:
        guest.drop()


@pytest.fixture
def firmware_log(host: ModelHost) -> Callable[[], list[dict[str, Any]]]:
    """Commands that reached the firmware since the test began, for guests that were not there before.

    A guest of an earlier test that was dropped may still be on its way out.
    """

    def logged() -> list[dict[str, Any]]:
        return [json.loads(line) for line in host.firmware_log.read_text().splitlines()]

    before = logged()
    others = {entry["handle"] for entry in before if entry.get("handle") is not None}

    def entries() -> list[dict[str, Any]]:
        return [entry for entry in logged()[len(before) :] if entry.get("handle") not in others]

    return entries
