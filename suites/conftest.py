# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of tests that call KVM directly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.init_path import INIT_PATHS, InitPath

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm


@pytest.fixture(params=INIT_PATHS, ids=lambda path: path.name.lower())
def es_path(request: pytest.FixtureRequest, kvm: Kvm) -> InitPath:
    """Each init path that the kernel has."""
    path: InitPath = request.param
    kvm.require(path)
    return path
