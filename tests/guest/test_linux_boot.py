# SPDX-License-Identifier: GPL-2.0-or-later
"""The init of Linux guests below a distribution's kernel, without encryption: neither was written for it."""

from __future__ import annotations

import os
from errno import ENXIO
from pathlib import Path

import pytest

from pytest_seves.evidence.linux_report import Cycled, LinuxReport, read_linux_reports
from tests.generations.kernel import Kernel
from tests.guest.linux_machine import OVMF, boot, distribution_kernel

pytestmark = pytest.mark.xdist_group("linux")  # one download, and one boot at a time


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """The distribution's kernel for virtual machines."""
    return distribution_kernel()


def only(console: bytes) -> LinuxReport:
    """The one report of a guest that has powered off."""
    (report,) = read_linux_reports(console)
    assert b"reboot: Power down" in console
    return report


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_every_cpu_is_online_and_comes_back(kernel: Kernel, tmp_path: Path, vcpus: int) -> None:
    """The kernel reaches init with all CPUs, each AP goes and comes back, and nothing is encrypted."""
    report = only(boot(tmp_path, kernel, vcpus=vcpus, append="seves_cycles=5 seves_tag=5eed"))
    assert (report.result, report.present, report.online, report.last_online) == ("ok", vcpus, vcpus, vcpus)
    assert (report.tag, report.cycles, f"vmlinuz-{report.kernel}") == (0x5EED, 5, kernel.image.name)
    assert [(cpu.index, cpu.ran, cpu.apic_id) for cpu in report.cpus] == [(n, True, n) for n in range(vcpus)]
    assert report.cycled == tuple(Cycled(cpu, 5, 5, 5, 0) for cpu in range(1, vcpus))
    assert (report.logged, set(report.by_status), report.log) == (frozenset(), {frozenset()}, ())


def test_firmware_boots_it_too(kernel: Kernel, tmp_path: Path) -> None:
    """OVMF finds kernel, initramfs and command line through fw_cfg, and what it says is no report."""
    if not Path(OVMF).is_file():
        pytest.skip(f"no {OVMF}")
    console = boot(tmp_path, kernel, "-machine", "pc", "-bios", OVMF, vcpus=2, append="seves_cycles=1")
    assert (only(console).result, only(console).online) == ("ok", 2)


def test_without_a_driver_the_status_is_unknown(kernel: Kernel, tmp_path: Path) -> None:
    """RDMSR is for the kernel: where nobody gives init the driver, it says that there is none."""
    report = only(boot(tmp_path, kernel, msr=False))
    assert [(cpu.sev_status, cpu.errno) for cpu in report.cpus] == [(None, ENXIO)]
    assert report.by_status == (None,)


def test_a_cpu_that_is_missing_is_missed(kernel: Kernel, tmp_path: Path) -> None:
    """A kernel that brings up one of two CPUs: the report has failed, and says which did not run."""
    report = only(boot(tmp_path, kernel, vcpus=2, append="maxcpus=1"))
    assert (report.result, report.present, report.online) == ("failed", 2, 1)
    assert [(cpu.index, cpu.ran) for cpu in report.cpus] == [(0, True), (1, False)]


def test_a_guest_that_reboots_reports_again(kernel: Kernel, tmp_path: Path) -> None:
    """One report for each boot."""
    console = boot(tmp_path, kernel, append="seves_then=reboot", until=b" end scenario=linux", times=2)
    assert [report.result for report in read_linux_reports(console)[:2]] == ["ok", "ok"]


def test_a_kernel_that_panics_reports_nothing(kernel: Kernel, tmp_path: Path) -> None:
    """No init, no report; what the kernel said is there to be read."""
    console = boot(tmp_path, kernel, append="rdinit=/absent init=/absent", until=b"Kernel panic")
    assert read_linux_reports(console) == ()
    assert os.linesep.encode() in console
