# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: the host under test, and guests on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .guest.seam import Kvm as Kvm
    from .guest.seam import Launcher as Launcher  # for annotations in tests
    from .guest.seam import Target as Target


@pytest.fixture(scope="session")
def sev_host(request: pytest.FixtureRequest) -> Target:
    """The host that `--sev-host` names, or that `--sev-replay` has: its lab entry and facts.

    With several hosts, tests run once for each.
    """
    from .plugin import RUN

    run = request.config.stash.get(RUN, None)
    if run is None:
        pytest.skip("no host to judge: give --sev-host NAME (or --sev-host model), or --sev-replay DIR")
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
    return run.launcher(request.node, sev_host)


@pytest.fixture
def kvm(sev_host: Target, request: pytest.FixtureRequest) -> Kvm:
    """Direct KVM and SEV calls on the host, without a VMM: ``kvm(open_kvm(), create_vm(0), ...)``.

    Each call runs one program of steps (:mod:`pytest_seves.guest.calls`) in a process of its own and returns
    its answers, one for each step. What the program made is gone when it returns.
    """
    from .plugin import RUN

    run = request.config.stash[RUN]
    run.note(request.node, sev_host)
    return run.kvm(request.node, sev_host)
