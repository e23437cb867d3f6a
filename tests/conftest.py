# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the project's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_seves.host.target import Target
    from pytest_seves.model.host import ModelHost


@pytest.fixture(scope="session")
def project() -> Path:
    """The top of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def model() -> Iterator[ModelHost]:
    """A model host of our own, with a real sshd."""
    from pytest_seves.model.host import ModelHost

    with ModelHost.start() as host:
        yield host


@pytest.fixture(scope="session")
def target(model: ModelHost) -> Iterator[Target]:
    """The model, seen as a host of the lab."""
    from pytest_seves.host.target import Target
    from pytest_seves.hosts import entry_of

    with Target(entry_of(model)) as connected:
        yield connected
