# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's kernel as SEV-ES guest on the model: neither was written for the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_seves.guest.kernel import Linux
from pytest_seves.guest.launcher import Launcher
from pytest_seves.host.inventory import GuestKernel
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost
from tests.guest.linux_machine import distribution_kernel

pytestmark = pytest.mark.xdist_group("linux")  # one download, and one boot at a time


def test_an_es_guest_starts_its_ap_and_powers_off() -> None:
    """Through OVMF to init: log and SEV_STATUS name SEV-ES, and the VMM ends in order.

    The AP waits in the firmware's reset hold, starts by the AP jump table, goes offline and starts again.
    """
    kernel = distribution_kernel()
    guest = GuestKernel(str(kernel.image), msr_module=str(kernel.msr_module))
    with ModelHost.start() as model, Target(replace(entry_of(model), guest=guest)) as target:
        launch = Linux(Launcher(target))(vcpus=2, cycles=1, policy=0x5)
    (report,) = launch.boots
    assert (report.result, report.present, report.online, report.complete) == ("ok", 2, 2, True)
    (cycled,) = report.cycled
    assert (cycled.cpu, cycled.offline, cycled.online, cycled.ran, report.last_online) == (1, 1, 1, 1, 2)
    named = frozenset({"SEV", "SEV-ES"})
    assert (report.logged, report.by_status) == (named, (named, named))
    assert (launch.exit.status, launch.exit.signal) == (0, None), launch.account()
