# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: the host under test, and guests on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .guest.launcher import Launcher as Launcher  # for annotations in tests
    from .host.target import Target as Target


@pytest.fixture(scope="session")
def sev_host(request: pytest.FixtureRequest) -> Target:
    """The host that `--sev-host` names: its lab entry, facts and connection.

    With several hosts, tests run once for each.
    """
    from .plugin import RUN

    run = request.config.stash.get(RUN, None)
    if run is None:
        pytest.skip("no host to judge: give --sev-host NAME (or --sev-host model)")
    return run.target(getattr(request, "param", run.options.hosts[0]))


@pytest.fixture
def launch_guest(sev_host: Target, request: pytest.FixtureRequest) -> Launcher:
    """Factory: ``launch_guest(vcpus=4, policy=0x5, ...)`` returns the evidence of a launch.

    Keyword arguments are those of :class:`pytest_seves.guest.spec.GuestSpec`. A guest that was launched
    with the same arguments before in this session is not launched again.
    """
    from .plugin import RUN

    run = request.config.stash[RUN]
    run.note(request.node, sev_host)
    return run.launcher(sev_host)
