# SPDX-License-Identifier: GPL-2.0-or-later
"""AP BOOT: where vCPUs start, from the registers that were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.registers import Registers, registers_before
from pytest_seves.evidence.timeline import Stage

if TYPE_CHECKING:
    from pytest_seves.fixtures import Launcher, Target

APS = pytest.mark.parametrize("vcpus", [2, 3, 16], ids=["2vcpu", "3vcpu", "16vcpu"])
INIT_PATHS = pytest.mark.parametrize("init_path", [None, "INIT2"], ids=["own", "INIT2"])
BSP_START = {"cs.selector": 0xF000, "cs.base": 0xFFFF0000, "rip": 0xFFF0}


@pytest.fixture
def starts(launch_guest: Launcher, vcpus: int, init_path: str | None) -> list[Registers]:
    """Where each vCPU starts: its CS and RIP when LAUNCH_UPDATE_VMSA measured them."""
    timeline = launch_guest(vcpus=vcpus, init_path=init_path).reached(Stage.MEASURED).timeline
    states = [registers_before(timeline, vcpu, timeline.vmsa_update) for vcpu in range(vcpus)]
    return [{name: state.get(name) for name in BSP_START} for state in states]


@pytest.mark.requirement("AP-BOOT-1")
@APS
@INIT_PATHS
def test_aps_start_where_the_firmware_says(starts: list[Registers], sev_host: Target) -> None:
    """Every AP starts at the CS:IP that the firmware's SEV-ES reset block publishes."""
    table = sev_host.facts.firmware.table
    assert table is not None
    wanted = {"cs.selector": 0xF000, "cs.base": table.reset_cs_base, "rip": table.reset_ip}
    assert {number: start for number, start in enumerate(starts) if number and start != wanted} == {}


@pytest.mark.requirement("AP-BOOT-2")
@APS
@INIT_PATHS
def test_the_bsp_starts_at_the_reset_vector(starts: list[Registers]) -> None:
    """The BSP keeps the architectural reset vector, F000:FFF0 with base FFFF0000."""
    assert starts[0] == BSP_START
