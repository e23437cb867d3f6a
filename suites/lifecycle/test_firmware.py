# SPDX-License-Identifier: GPL-2.0-or-later
"""LIFECYCLE: a guest that is told at its firmware's shell to reset or to shut down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_seves.errors import Undecided
from suites.ap_boot.test_firmware import ES, MACHINES, boot, reached
from suites.lifecycle.test_lifecycle import ended_with_its_message, measured_again

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.guest.firmware_shell import FirmwareShell

pytestmark = pytest.mark.slow

POLICIES = pytest.mark.parametrize("policy", [ES, None], ids=["ES+NODBG", "plain"])


def at_its_shell(launch: Launch) -> Launch:
    """A guest that came to its shell; AP-BOOT-10 judges that it does."""
    if reached(launch):
        return launch
    raise Undecided(f"{launch.host}: the guest did not come to its shell: {launch.account()}")


def told(launch: Launch, event: str) -> list[dict[str, Any]]:
    """What the VMM said with events of that name."""
    return [e["data"] for _, e in launch.qmp.events if e["event"] == event]


@pytest.mark.requirement("LIFECYCLE-1")
@MACHINES
def test_a_reset_at_the_shell(shell: FirmwareShell, machine: str) -> None:
    """A SEV-ES guest that its firmware resets ends with a message, or is launched and measured again."""
    launch = at_its_shell(boot(shell, machine, 2))
    assert ended_with_its_message(launch) or measured_again(launch), launch.account()


@pytest.mark.requirement("LIFECYCLE-1")
@MACHINES
def test_a_reset_of_a_plain_guest(shell: FirmwareShell, machine: str) -> None:
    """Without encryption the machine is reset, and its VMM goes on (control)."""
    launch = at_its_shell(boot(shell, machine, 2, policy=None))
    assert [event["guest"] for event in told(launch, "RESET")] == [True], launch.account()
    assert launch.qmp.all("quit"), launch.account()


@pytest.mark.requirement("LIFECYCLE-9")
@POLICIES
@MACHINES
def test_a_shutdown_ends_the_vm(shell: FirmwareShell, machine: str, policy: int | None) -> None:
    """A guest that shuts down at its shell ends its VMM, in order, and the VMM says that it was the guest."""
    launch = at_its_shell(boot(shell, machine, 1, policy))
    assert not launch.qmp.all("quit"), launch.account()
    assert (launch.exit.status, launch.exit.signal) == (0, None), launch.account()
    shutdowns = [(event["guest"], event["reason"]) for event in told(launch, "SHUTDOWN")]
    assert shutdowns == [(True, "guest-shutdown")]
