# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: init paths for direct calls of KVM, and a guest that says what its vCPUs met."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.firmware_shell import FirmwareShell
from pytest_seves.guest.init_path import INIT_PATHS, InitPath
from pytest_seves.guest.kernel import Linux
from pytest_seves.guest.probe import Probe

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm, Launcher


@pytest.fixture(params=INIT_PATHS, ids=lambda path: path.name.lower())
def es_path(request: pytest.FixtureRequest, kvm: Kvm) -> InitPath:
    """Each init path that the kernel has."""
    path: InitPath = request.param
    kvm.require(path)
    return path


@pytest.fixture
def probe(launch_guest: Launcher) -> Probe:
    """Factory: ``probe("park", vcpus=3, rounds=100)`` launches the probe guest (guest/payload)."""
    return Probe(launch_guest)


@pytest.fixture
def linux(launch_guest: Launcher) -> Linux:
    """Factory: ``linux(vcpus=4, cycles=10)`` boots a Linux kernel with an init that reports (guest/linux)."""
    return Linux(launch_guest)


@pytest.fixture
def shell(launch_guest: Launcher) -> FirmwareShell:
    """Factory: ``shell(vcpus=2, then="reset")`` boots the host's firmware to its UEFI shell."""
    return FirmwareShell(launch_guest)
