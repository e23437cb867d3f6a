# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: the host under test, and guests on it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .guest.direct import Kvm as Kvm
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
    launcher = run.launcher(sev_host)
    launcher.last = None
    launcher.on_launch = functools.partial(run.served, request.node)
    return launcher


@pytest.fixture
def kvm(sev_host: Target, request: pytest.FixtureRequest) -> Kvm:
    """Direct KVM and SEV calls on the host, without a VMM: ``kvm(open_kvm(), create_vm(0), ...)``.

    Each call runs one program of steps (:mod:`pytest_seves.guest.calls`) in a process of its own and returns
    its answers, one for each step. What the program made is gone when it returns.
    """
    from .guest.direct import Kvm
    from .plugin import RUN

    run = request.config.stash[RUN]
    run.note(request.node, sev_host)
    sev_host.require_ready()
    folder = run.options.artifacts / sev_host.name / "calls" if run.options.artifacts else None
    return Kvm(sev_host, request.node.name, folder)
