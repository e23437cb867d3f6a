# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel as part of a guest: found on the host, handed to the VMM, measured where that is asked for."""

from __future__ import annotations

import gzip
import lzma
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import RigError, Unsupported
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.firmware_image import build_variant
from pytest_seves.guest.kernel import host_initramfs
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.linux.build import BINARY
from pytest_seves.host.inventory import GuestKernel
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.spec.sev import SevCmd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_seves.evidence.launch import Launch
    from pytest_seves.model.host import ModelHost

SEV_ES = 0x5


def empty_kernel() -> bytes:
    """A bzImage of protocol 2.12 that QEMU loads, with nothing in it to run."""
    head = bytearray(0x4000)
    head[0x1F1], head[0x202:0x206] = 1, b"HdrS"
    struct.pack_into("<HxxxxxxH", head, 0x206, 0x20C, 0x3000)
    head[0x211] = 1  # loaded high
    struct.pack_into("<I", head, 0x22C, 0x7FFFFFFF)  # the initramfs may lie anywhere
    head[0x3200:0x3240] = b"6.1.0-none (nobody) #1\0".ljust(64, b"\0")
    return bytes(head)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel that every user may read, as the model's host runs on this machine."""
    folder = tmp_path_factory.mktemp("kernel")
    path = folder / "vmlinuz"
    path.write_bytes(empty_kernel())
    (folder / "msr.ko").write_bytes(b"a driver")
    return path


@pytest.fixture(scope="module")
def named(model: ModelHost, kernel: Path) -> Iterator[Target]:
    """The model, whose lab file names that kernel."""
    guest = GuestKernel(str(kernel), msr_module=str(kernel.parent / "msr.ko"))
    with Target(replace(entry_of(model), guest=guest)) as connected:
        yield connected


def test_without_a_kernel_the_guest_is_skipped(target: Target) -> None:
    """The reason names the key of the lab file. The model runs no kernel by itself."""
    with pytest.raises(Unsupported, match=r"the lab file has no \[guest\] kernel, and .*: no kernel named"):
        Launcher(target)(kernel="host", policy=None)


def test_the_kernel_of_the_lab_file_is_handed_over(named: Target, kernel: Path) -> None:
    """Kernel, initramfs and command line reach the VMM; the initramfs is put on the host once."""
    launcher = Launcher(named)
    options = {"policy": None, "kernel": "host", "initrd": "probe"}
    first, second = (launcher(**options, append=f"seves_cycles={n}") for n in (1, 2))
    for launch in (first, second):
        launch.reached(Stage.RUNNING)
        words = dict(zip(launch.argv, launch.argv[1:], strict=False))
        assert words["-kernel"] == str(kernel)
        assert words["-initrd"].endswith("-initramfs")
    assert "seves_cycles=1" in first.argv
    assert first.argv[first.argv.index("-initrd") + 1] == second.argv[second.argv.index("-initrd") + 1]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_the_driver_of_the_host_is_in_the_initramfs(
    model: ModelHost, tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    """What the host has as msr driver of that kernel goes along with our init, decompressed."""
    (tmp_path / "vmlinuz").write_bytes(empty_kernel())
    driver = tmp_path / f"msr.ko{suffix}"
    driver.write_bytes(pack(b"a driver"))
    guest = GuestKernel(str(tmp_path / "vmlinuz"), msr_module=str(driver))
    with Target(replace(entry_of(model), guest=guest)) as host:
        unpacked = gzip.decompress(host_initramfs(host))
        assert b"a driver" in unpacked
        assert BINARY.read_bytes() in unpacked
        if suffix:
            driver.write_bytes(b"damaged")
            with pytest.raises(RigError, match=r"msr.ko.*: wanted a kernel module to decompress"):
                host_initramfs(host)


def test_hashes_of_the_kernel_are_measured(named: Target) -> None:
    """With kernel hashes the launch digest covers one thing more than the firmware: the table of hashes."""
    launcher = Launcher(named)
    firmware = launcher.put("hashes.fd", build_variant("valid"))
    options = {"policy": SEV_ES, "kernel": "host", "initrd": "probe", "firmware": firmware}
    plain, hashed = (launcher(**options, kernel_hashes=wanted) for wanted in (False, True))
    assert (updates(plain), updates(hashed)) == (1, 2)
    assert "kernel-hashes=on" in ",".join(hashed.argv)


def test_firmware_without_a_place_for_hashes(named: Target) -> None:
    """The generic OVMF has none: the VMM refuses, in order, and the guest never runs."""
    launch = Launcher(named)(policy=SEV_ES, kernel="host", initrd="probe", kernel_hashes=True)
    assert launch.timeline.runs == ()
    assert (launch.exit.status, launch.exit.signal) == (1, None)
    assert "hash" in launch.stderr.text


def updates(launch: Launch) -> int:
    """Successful LAUNCH_UPDATE_DATA."""
    launch.reached(Stage.RUNNING)
    name = SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA.name
    return len([e for e in launch.timeline.recorded if e.sev and e.succeeded and e.name == name])
