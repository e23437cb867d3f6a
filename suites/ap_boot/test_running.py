# SPDX-License-Identifier: GPL-2.0-or-later
"""AP BOOT: where vCPUs start, and start again, as a guest that runs sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.guest.probe import WITH_X2APIC

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.evidence.probe_report import ProbeReport
    from pytest_seves.guest.probe import Probe

FEW = pytest.mark.parametrize("vcpus", [2, 3], ids=["2vcpu", "3vcpu"])
BOTH_PATHS = pytest.mark.parametrize("init_path", [None, "INIT2"], ids=["own", "INIT2"])


def online(launch: Launch) -> ProbeReport:
    """The guest's report, if all its vCPUs are in it; AP-BOOT-3 judges that they are."""
    report = launch.report
    if len([cpu for cpu in report.cpus if cpu.arrived]) == report.expected:
        return report
    raise Undecided(f"{launch.host}: {len(report.cpus)} of {report.expected} vCPUs reported: {report.result}")


@pytest.mark.requirement("AP-BOOT-1")
@BOTH_PATHS
@FEW
def test_aps_come_from_the_reset_block(probe: Probe, vcpus: int, init_path: str | None) -> None:
    """Every AP that runs met the code at the published address first."""
    report = online(probe(vcpus=vcpus, init_path=init_path))
    assert [cpu.entry for cpu in report.cpus[1:]] == ["reset-block"] * (vcpus - 1)


@pytest.mark.requirement("AP-BOOT-2")
@BOTH_PATHS
@FEW
def test_the_bsp_comes_from_the_reset_vector(probe: Probe, vcpus: int, init_path: str | None) -> None:
    """The BSP met the code at the architectural reset vector first."""
    bsp = online(probe(vcpus=vcpus, init_path=init_path)).cpus[0]
    assert (bsp.entry, bsp.entry_address) == ("reset-vector", 0xFFFFFFF0)


@pytest.mark.requirement("AP-BOOT-3")
@BOTH_PATHS
@pytest.mark.parametrize("vcpus", [1, 2, 3, 8, 16, 64], ids=lambda count: f"{count}vcpu")
def test_every_vcpu_comes_online(probe: Probe, vcpus: int, init_path: str | None) -> None:
    """All vCPUs report to the guest, each with an APIC id of its own."""
    report = probe(vcpus=vcpus, init_path=init_path).report
    assert report.result == "ok"
    assert sorted(cpu.apic_id for cpu in report.cpus if cpu.arrived) == list(range(vcpus))


@pytest.mark.requirement("AP-BOOT-3")
@pytest.mark.parametrize("vcpus", [260], ids=["260vcpu"])
def test_more_vcpus_than_apic_ids_of_8_bits(probe: Probe, vcpus: int) -> None:
    """260 vCPUs come online with x2APIC."""
    report = probe(vcpus=vcpus, **WITH_X2APIC).report
    assert report.result == "ok"
    assert sorted(cpu.apic_id for cpu in report.cpus if cpu.arrived) == list(range(vcpus))


@pytest.mark.requirement("AP-BOOT-3")
@pytest.mark.parametrize("policy", [None, 0x1], ids=["plain", "NODBG"])
def test_every_vcpu_comes_online_without_es(probe: Probe, policy: int | None) -> None:
    """Without SEV-ES they do too, where the SIPI vector says (control)."""
    report = probe(vcpus=3, policy=policy).report
    assert [cpu.entry for cpu in report.cpus] == ["reset-vector", "sipi-vector", "sipi-vector"]


@pytest.mark.requirement("AP-BOOT-4")
@pytest.mark.parametrize("vector", [0x10, 0x9F], ids=hex)
def test_the_sipi_vector_changes_nothing(probe: Probe, vector: int) -> None:
    """Whatever vector the SIPI has, an AP starts where its measured state says."""
    report = online(probe(vcpus=3, sipi_vector=vector))
    assert [cpu.entry for cpu in report.cpus] == ["reset-vector", "reset-block", "reset-block"]


@pytest.mark.requirement("AP-BOOT-5")
@BOTH_PATHS
@FEW
def test_a_parked_ap_wakes(probe: Probe, vcpus: int, init_path: str | None) -> None:
    """An AP in AP reset hold wakes by the next SIPI, once each, 100 times."""
    report = online(probe("park", vcpus=vcpus, init_path=init_path, rounds=100))
    assert report.result == "ok"
    assert [(ap.wakes, ap.spurious) for ap in report.parked] == [(100, 0)] * (vcpus - 1)


@pytest.mark.requirement("AP-BOOT-9")
@pytest.mark.parametrize("address", [0x00801000, 0x00BFF340], ids=hex)
def test_an_ap_runs_at_another_address(probe: Probe, address: int) -> None:
    """An AP that runs met the code at whatever address the firmware publishes."""
    report = online(probe(vcpus=2, reset_address=address))
    assert (report.cpus[1].entry, report.cpus[1].entry_address) == ("reset-block", address)
