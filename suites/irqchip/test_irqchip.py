# SPDX-License-Identifier: GPL-2.0-or-later
"""IRQCHIP: a SEV-ES guest boots its APs through the kernel's interrupt controller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.timeline import Stage

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.fixtures import Launcher

#: QEMU 9.1 to 10.2 lost the blank between two strings.
DIAGNOSTIC = re.compile("in-kernel irqchip ?support")


@pytest.fixture
def without_irqchip(launch_guest: Launcher) -> Launch:
    """A SEV-ES guest that was asked for with kernel-irqchip=off."""
    return launch_guest(vcpus=2, machine={"kernel-irqchip": "off"})


@pytest.mark.requirement("IRQCHIP-1")
def test_irqchip_off_is_refused(without_irqchip: Launch) -> None:
    """kernel-irqchip=off ends the launch with the diagnostic; nothing runs."""
    assert without_irqchip.timeline.runs == ()
    assert DIAGNOSTIC.search(without_irqchip.stderr.text)


@pytest.mark.requirement("IRQCHIP-2")
def test_irqchip_off_is_refused_cleanly(without_irqchip: Launch) -> None:
    """The refusal is an exit with a status other than 0, not a crash."""
    assert without_irqchip.exit.signal is None
    assert without_irqchip.exit.status != 0


@pytest.mark.requirement("IRQCHIP-3")
@pytest.mark.parametrize("irqchip", ["on", "split"])
def test_irqchip_in_the_kernel_launches(launch_guest: Launcher, irqchip: str) -> None:
    """The whole irqchip in the kernel, and the split one, launch."""
    launch = launch_guest(vcpus=2, machine={"kernel-irqchip": irqchip}).initialised_for()
    assert launch.timeline.stage == Stage.RUNNING, launch.account()
