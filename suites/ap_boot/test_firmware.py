# SPDX-License-Identifier: GPL-2.0-or-later
"""AP BOOT: the host's own firmware, with all that it asks of CPUs, VMM and KVM on the way to its shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Unsupported
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.firmware_shell import NO_SHELL, PROMPT, RESET, SHUT_DOWN

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.guest.firmware_shell import FirmwareShell

pytestmark = pytest.mark.slow

ES = 0x5
#: What guests have where nobody says otherwise, and the older one; each shares its launches.
MACHINES = pytest.mark.parametrize(
    "machine",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"shell-{name}")) for name in ("q35", "pc")],
)
#: What is typed at the prompt, by the number of vCPUs: other requirements judge what comes of it.
THEN = {1: SHUT_DOWN, 2: RESET, 4: SHUT_DOWN}
SILENT = (
    "known defect: this firmware is silent as SEV-ES guest on {machine}, where it boots without encryption,"
    " and boots as SEV-ES guest on pc: its #VC path loses what MMIO reads into RBP, so it finds no PCI device"
    " (seen in Debian's edk2 2022.11, no report known)"
)


def reached(launch: Launch) -> bool:
    """Whether the prompt was on the console.

    :raise Unsupported: the VMM has no such machine, or the firmware no shell.
    """
    if "unsupported machine type" in launch.stderr.text:
        raise Unsupported("this VMM does not have the machine")
    console = launch.reached(Stage.RUNNING).console.text
    if NO_SHELL in console:
        raise Unsupported("this firmware has no UEFI shell built in")
    return PROMPT in console


def boot(shell: FirmwareShell, machine: str, vcpus: int, policy: int | None = ES) -> Launch:
    """A guest that goes to its shell and is reset or shut down there.

    A firmware that is known to be silent on a machine is named, and nothing concluded about a VMM.
    """
    if policy is not None and machine != "pc":
        _name_the_silent(shell, machine)
    return shell(then=THEN[vcpus], machine=machine, vcpus=vcpus, policy=policy)


def _name_the_silent(shell: FirmwareShell, machine: str) -> None:
    encrypted = shell(then=THEN[1], machine=machine, policy=ES).reached(Stage.RUNNING)
    if encrypted.console.size or (not encrypted.qmp.all("quit") and not _running(encrypted)):
        return
    controls = ((machine, None), ("pc", ES))
    if all(reached(shell(then=THEN[1], machine=name, policy=policy)) for name, policy in controls):
        pytest.xfail(SILENT.format(machine=machine))


def _running(launch: Launch) -> bool:
    """Whether the VMM said in the end that the guest runs."""
    told = launch.qmp.replies("query-status")
    return bool(told) and bool(told[-1]["running"])


@pytest.mark.requirement("AP-BOOT-10")
@pytest.mark.parametrize("vcpus", [1, 2, 4], ids=["1vcpu", "2vcpu", "4vcpu"])
@MACHINES
def test_an_es_guest_reaches_its_shell(shell: FirmwareShell, machine: str, vcpus: int) -> None:
    """A SEV-ES guest comes to the prompt of its firmware's shell."""
    launch = boot(shell, machine, vcpus).initialised_for(ES)
    assert reached(launch), launch.account()


@pytest.mark.requirement("AP-BOOT-10")
@pytest.mark.parametrize("vcpus", [1, 2], ids=["1vcpu", "2vcpu"])
@MACHINES
def test_a_plain_guest_reaches_its_shell(shell: FirmwareShell, machine: str, vcpus: int) -> None:
    """Without encryption it does too (control)."""
    launch = boot(shell, machine, vcpus, policy=None)
    assert reached(launch), launch.account()
