# SPDX-License-Identifier: GPL-2.0-or-later
"""AP BOOT: firmware that publishes no usable reset address is refused, and any usable one is honoured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.registers import registers_before
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.firmware_image import OTHER_ADDRESS, build_variant
from pytest_seves.spec.sev import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_seves.evidence.launch import Launch
    from pytest_seves.fixtures import Launcher

#: Tables that contradict themselves, and leave a VMM no reset address that it may believe.
CORRUPT = [
    "entry-zero",
    "entry-short",
    "entry-long",
    "entry-bare",
    "entry-odd",
    "total-zero",
    "total-short",
    "total-inside",
    "total-beyond",
    "overlap-reset",
    "legacy-short",
    "legacy-long",
]


@pytest.fixture
def boot(launch_guest: Launcher) -> Callable[..., Launch]:
    """Factory: ``boot("no-block", policy=...)`` launches two vCPUs with an image of the firmware workshop.

    A VMM that ended before it had made its vCPUs has not looked at the firmware: undecided.
    """

    def launch(variant: str, policy: int = int(Policy.NODBG | Policy.ES)) -> Launch:
        path = launch_guest.put(f"{variant}.fd", build_variant(variant))
        launch = launch_guest(vcpus=2, policy=policy, firmware=path).initialised_for(policy)
        if not launch.timeline.vcpu_creations:
            raise Undecided(f"the VMM did not come to its firmware: {launch.account()}")
        return launch

    return launch


def refused(launch: Launch) -> bool:
    """Whether the launch ended by itself, in order, before anything was measured or ran."""
    clean = launch.exit.signal is None and launch.exit.status != 0
    return clean and launch.timeline.stage < Stage.MEASURED and launch.stderr.text != ""


@pytest.mark.requirement("AP-BOOT-6")
@pytest.mark.parametrize("variant", ["no-block", "empty-table", "no-table"])
def test_firmware_without_a_reset_block_is_refused(boot: Callable[..., Launch], variant: str) -> None:
    """Under ES the launch ends with a diagnostic about the missing block."""
    launch = boot(variant)
    assert refused(launch), launch.account()
    assert "reset vector" in launch.stderr.text


@pytest.mark.requirement("AP-BOOT-6")
@pytest.mark.parametrize("variant", ["no-block", "empty-table", "no-table"])
def test_plain_sev_needs_no_reset_block(boot: Callable[..., Launch], variant: str) -> None:
    """The same image boots without the ES bit (control)."""
    launch = boot(variant, policy=int(Policy.NODBG))
    assert launch.timeline.stage == Stage.RUNNING, launch.account()


@pytest.mark.requirement("AP-BOOT-7")
def test_reset_address_zero_is_refused(boot: Callable[..., Launch]) -> None:
    """A reset block with address 0 ends the launch with a diagnostic that says so."""
    launch = boot("zero-address")
    assert refused(launch), launch.account()
    assert "reset address is zero" in launch.stderr.text


@pytest.mark.requirement("AP-BOOT-8")
@pytest.mark.parametrize("variant", CORRUPT)
def test_corrupt_table_is_refused(boot: Callable[..., Launch], variant: str) -> None:
    """A table that contradicts itself is refused, with no crash and no hang."""
    launch = boot(variant)
    assert refused(launch), launch.account()


@pytest.mark.requirement("AP-BOOT-9")
@pytest.mark.parametrize(
    ("variant", "address"),
    [("other-address", OTHER_ADDRESS), ("high-address", 0xFFFFFFFF)],
    ids=["other", "high"],
)
def test_another_address_is_honoured(boot: Callable[..., Launch], variant: str, address: int) -> None:
    """An AP starts at whatever address the firmware publishes."""
    timeline = boot(variant).reached(Stage.MEASURED).timeline
    start = registers_before(timeline, 1, timeline.vmsa_update)
    assert (start["cs.base"], start["rip"]) == (address & 0xFFFF0000, address & 0xFFFF)
