# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that are wrong about a running SEV-ES guest, each in one way: what the probe guest meets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_seves.guest.defects import kernel_settings
from pytest_seves.model.host import ModelHost
from tests.model.cpu.probing import Probe, boot
from tests.model.driving import Guest

#: Of virtual time, where a guest waits in vain: less than a second of real time.
SHORT = 100_000_000
Boot = Callable[..., Probe]


@pytest.fixture
def wrong(launch: Callable[..., Guest]) -> Iterator[Boot]:
    """Launch the probe guest on a host with a defect, by name; "" is a right host."""
    hosts: list[ModelHost] = []

    def run(defect: str, scenario: str = "boot", *, kernel: str = "linux-6.12", **parameters: Any) -> Probe:
        settings = kernel_settings((defect,)) if defect else ""
        hosts.append(ModelHost.start(f"{kernel}:{settings}"))
        return boot(launch, hosts[-1], scenario, **parameters)

    yield run
    for host in hosts:
        host.close()


# Starting APs


@pytest.mark.parametrize("vector", [0x08, 0x9F])
def test_ap_starts_at_its_sipi_vector(wrong: Boot, vector: int) -> None:
    """Every AP says that it came by the vector, and goes on all the same."""
    report = wrong("ap-starts-at-sipi", sipi_vector=vector, vcpus=3).report()
    assert (report.result, report.started) == ("ok", 3)
    assert [(ap.entry, ap.entry_address, ap.entry_cs) for ap in report.cpus[1:]] == [
        ("sipi-vector", vector << 12, vector << 8)
    ] * 2


def test_ap_that_started_wrongly_parks_rightly(wrong: Boot) -> None:
    """Later SIPIs end its reset hold."""
    report = wrong("ap-starts-at-sipi", "park", rounds=3).report()
    assert (report.result, report.started, report.retries) == ("ok", 2, 0)


def test_last_ap_is_lost(wrong: Boot) -> None:
    """All others come."""
    report = wrong("ap-lost", vcpus=3, timeout_ticks=SHORT, beat_ticks=1).report()
    assert (report.result, report.expected, report.started) == ("timeout", 3, 2)
    assert [cpu.apic_id for cpu in report.cpus if cpu.arrived] == [0, 1]


def test_single_vcpu_is_not_lost(wrong: Boot) -> None:
    """The BSP needs no SIPI."""
    assert wrong("ap-lost", vcpus=1).report().result == "ok"


def test_hold_is_not_woken(wrong: Boot) -> None:
    """The AP comes, and never again."""
    report = wrong("hold-not-woken", "park", rounds=2, timeout_ticks=SHORT, beat_ticks=1).report()
    assert (report.result, report.started) == ("timeout", 2)
    assert [ap.wakes for ap in report.parked] == [0]


@pytest.mark.parametrize("defect", ["ap-starts-at-sipi", "ap-lost", "hold-not-woken"])
@pytest.mark.parametrize("policy", [None, 1], ids=["plain", "sev"])
def test_aps_of_other_guests_start_rightly(wrong: Boot, defect: str, policy: int | None) -> None:
    """These defects are of SEV-ES guests alone."""
    report = wrong(defect, "park", rounds=2, policy=policy).report()
    assert (report.result, report.started, report.retries) == ("ok", 2, 0)


# Ending


def test_guest_goes_on_though_it_asked_for_its_end(wrong: Boot) -> None:
    """It says so, and the VMM is told nothing."""
    probe = wrong("termination-swallowed", "terminate", reason_set=1, reason_code=2)
    probe.wait(lambda console: b"returned=1" in console)
    assert probe.guest("query-status")["status"] == "running"
    assert probe.quit() == ["vCPU 0: guest requested termination, GHCB MSR 0x21100"]


@pytest.mark.parametrize("kernel", ["linux-6.1", "linux-6.12"])
def test_triple_fault_hangs(wrong: Boot, kernel: str) -> None:
    """The VMM stops, continues and quits a guest that does nothing more."""
    probe = wrong("triple-fault-hangs", "triple-fault", kernel=kernel)
    before = probe.report()
    for command in ("stop", "cont"):
        probe.guest(command)
        assert probe.guest("query-status")["running"] == (command == "cont")
    assert probe.report() == before
    assert not before.returned
    assert probe.quit() == ["vCPU 0: triple fault"]


@pytest.mark.parametrize("policy", [None, 1], ids=["plain", "sev"])
def test_triple_fault_of_other_guests_resets_them(wrong: Boot, policy: int | None) -> None:
    """The machine starts again, as on a right host."""
    probe = wrong("triple-fault-hangs", "triple-fault", policy=policy)
    assert b" again=1 " in probe.wait(lambda console: console.count(b" end ") == 2)
