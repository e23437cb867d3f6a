# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest without encryption, under TCG and under a real KVM: neither was written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_seves.evidence.probe_report import Canaries, Ghcb
from pytest_seves.guest.payload.image import probe_image
from tests.guest.probe_machine import MANY_CPUS, needs, run_probe

KEPT = Canaries(gpr=True, xmm=True, cr3=True, dr=True, memory=True)
NO_VC = {0x72: 0, 0x7B: 0, 0x7C: 0, 0x400: 0, 0x6E: 0}


@pytest.fixture(params=["tcg", "kvm"])
def accelerator(request: pytest.FixtureRequest) -> str:
    """Each accelerator that there is here."""
    needs(request.param)
    return str(request.param)


@pytest.mark.parametrize("vcpus", [1, 2, 8, 64])
def test_every_vcpu_reports(accelerator: str, vcpus: int, tmp_path: Path) -> None:
    """All vCPUs come up, each once, the BSP at the reset vector and the APs where the SIPI says."""
    (report,) = run_probe(tmp_path, probe_image(tag=0xABC), accelerator=accelerator, vcpus=vcpus)
    assert (report.result, report.expected, report.started, report.tag) == ("ok", vcpus, vcpus, 0xABC)
    assert (report.retries, report.forced, report.late, report.faults) == (0, 0, 0, ())
    assert sorted(cpu.apic_id for cpu in report.cpus) == list(range(vcpus))
    for index, cpu in enumerate(report.cpus):
        assert (cpu.index, cpu.arrived, cpu.cpuid_apic_id) == (index, True, cpu.apic_id)
        where = ("reset-vector", 0xFFFFFFF0, 0xF000) if index == 0 else ("sipi-vector", 0x8000, 0x800)
        assert (cpu.entry, cpu.entry_address, cpu.entry_cs) == where
        assert (cpu.sev_status, cpu.ghcb, cpu.vc) == (0, Ghcb((0, 0), 0), NO_VC)


def test_more_vcpus_than_an_8_bit_apic_id_can_name(tmp_path: Path) -> None:
    """APIC ids above 255 are told apart: x2APIC."""
    needs("kvm")
    (report,) = run_probe(tmp_path, probe_image(), *MANY_CPUS, accelerator="kvm", vcpus=260)
    assert (report.result, report.x2apic, report.started) == ("ok", True, 260)
    assert [cpu.cpuid_apic_id for cpu in report.cpus] == [cpu.apic_id for cpu in report.cpus]
    assert len({cpu.apic_id for cpu in report.cpus}) == 260
    assert max(cpu.apic_id for cpu in report.cpus) > 255


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_apic_s_page_serves_too(accelerator: str, machine: str, tmp_path: Path) -> None:
    """Without x2APIC the IPIs go through the APIC's page."""
    image = probe_image(xapic=True)
    (report,) = run_probe(tmp_path, image, "-machine", machine, accelerator=accelerator, vcpus=3)
    assert (report.result, report.x2apic, report.started) == ("ok", False, 3)


def test_the_image_serves_as_flash_too(accelerator: str, tmp_path: Path) -> None:
    """As the code flash of a machine, read-only, it boots as it does with -bios."""
    flash = tmp_path / "flash.bin"
    flash.write_bytes(probe_image())
    drive = f"if=pflash,format=raw,unit=0,readonly=on,file={flash}"
    (report,) = run_probe(
        tmp_path, None, "-machine", "q35", "-drive", drive, accelerator=accelerator, vcpus=2
    )
    assert (report.result, report.started) == ("ok", 2)


@pytest.mark.parametrize("vector", [0x01, 0x9F])
def test_the_sipi_vector_is_honoured(accelerator: str, vector: int, tmp_path: Path) -> None:
    """Where there is no SEV-ES an AP starts at the page that the SIPI names, whatever the table says."""
    image = probe_image(sipi_vector=vector, reset_address=0x0080B004)
    (report,) = run_probe(tmp_path, image, accelerator=accelerator, vcpus=2)
    ap = report.cpus[1]
    assert (ap.entry, ap.entry_address, ap.entry_cs) == ("sipi-vector", vector << 12, vector << 8)


def test_a_vcpu_that_does_not_come_is_missed(accelerator: str, tmp_path: Path) -> None:
    """One vCPU too few: the report ends with a timeout, and tells who did come."""
    image = probe_image(cpus=3, timeout_ticks=2_000_000_000)
    (report,) = run_probe(tmp_path, image, accelerator=accelerator, vcpus=2)
    assert (report.result, report.expected, report.started) == ("timeout", 3, 2)
    assert report.retries > 0


@pytest.mark.parametrize("vcpus", [1, 3])
def test_canaries_are_held_and_compared(accelerator: str, vcpus: int, tmp_path: Path) -> None:
    """Registers and memory keep their canaries over a number of beats, on every vCPU."""
    image = probe_image("spin", rounds=3)
    (report,) = run_probe(tmp_path, image, accelerator=accelerator, vcpus=vcpus)
    assert report.result == "ok"
    assert [(beat.number, beat.holding) for beat in report.beats] == [(n, vcpus) for n in (1, 2, 3)]
    assert {beat.canaries for beat in report.beats} | {held.canaries for held in report.held} == {KEPT}
    assert [held.cpu for held in report.held] == list(range(vcpus))
    assert min(held.checks for held in report.held) > 0


def test_parked_vcpus_wake_each_time(accelerator: str, tmp_path: Path) -> None:
    """Each round wakes each AP once."""
    (report,) = run_probe(tmp_path, probe_image("park", rounds=20), accelerator=accelerator, vcpus=3)
    assert report.result == "ok"
    assert [(ap.cpu, ap.spurious) for ap in report.parked] == [(1, 0), (2, 0)]
    assert min(ap.wakes for ap in report.parked) >= 20


@pytest.mark.parametrize(
    ("scenario", "parameters"),
    [("triple-fault", {}), ("reset", {"reset_by": "cf9"}), ("reset", {"reset_by": "keyboard"})],
    ids=["triple-fault", "reset-cf9", "reset-keyboard"],
)
def test_a_guest_that_is_reset_reports_again(
    accelerator: str, scenario: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """The end of the first report comes before the reset; after it the guest reports once more and stays."""
    image = probe_image(scenario, **parameters)
    first, second = run_probe(tmp_path, image, accelerator=accelerator, vcpus=2, reports=2)
    assert (first.result, first.again, first.returned) == ("ok", False, False)
    assert (second.result, second.again, second.started) == ("ok", True, 2)


def test_termination_needs_sev_es(accelerator: str, tmp_path: Path) -> None:
    """Without a GHCB there is nobody to ask: the guest says so, and goes on."""
    (report,) = run_probe(tmp_path, probe_image("terminate", reason_code=1), accelerator=accelerator)
    assert report.result == "unsupported"


def test_a_storm_without_vc_counts_none(accelerator: str, tmp_path: Path) -> None:
    """The same instructions run; nothing raises #VC."""
    (report,) = run_probe(tmp_path, probe_image("storm", rounds=50), accelerator=accelerator, vcpus=2)
    assert [(s.cpu, s.rounds, s.bad, s.vc) for s in report.storms] == [(n, 50, 0, NO_VC) for n in (0, 1)]
