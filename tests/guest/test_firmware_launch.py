# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU makes of the images of the firmware workshop; the same on 7.2 and 10.0."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import AgentRemoteError
from pytest_seves.evidence.registers import registers_before
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.firmware_image import build_variant
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.spec import GuestSpec

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.host.target import Target

SEV, SEV_ES = 0x1, 0x5
FAILED = "failed to locate and/or save reset vector"
ABSENT = "SEV information block/Firmware GUID Table block not found in pflash rom"
ZERO = "SEV-ES reset address is zero"
INVALID = "OVMF table has invalid size"


@pytest.fixture(scope="module")
def launcher(target: Target) -> Launcher:
    """Launches of this module: the same guest is launched once."""
    return Launcher(target)


def diagnostics(launch: Launch) -> list[str]:
    """What QEMU said, without its name; later ones warn about the CPU model first."""
    said = [line.split(": ", 1)[1] for line in launch.stderr.text.splitlines()]
    return [text for text in said if not text.startswith("warning: ")]


def starts_at(launch: Launch, vcpu: int) -> tuple[int, int]:
    """Base of the code segment and instruction pointer that the VMM gave to KVM before the measurement."""
    seen = registers_before(launch.timeline, vcpu, launch.timeline.vmsa_update)
    return seen["cs.base"], seen["rip"]


@pytest.mark.parametrize("via", ["bios", "pflash"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-block", [ABSENT, FAILED]),
        ("no-table", [ABSENT, FAILED]),
        ("empty-table", [ABSENT, FAILED]),
        ("truncated-tail", [ABSENT, FAILED]),
        ("noise", [ABSENT, FAILED]),
        ("entry-zero", [ABSENT, FAILED]),
        ("entry-short", [ABSENT, FAILED]),
        ("entry-long", [ABSENT, FAILED]),
        ("total-inside", [ABSENT, FAILED]),
        ("overlap-reset", [ABSENT, FAILED]),
        ("overlap-whole", [ABSENT, FAILED]),
        ("zero-address", [ZERO, FAILED]),
        ("total-zero", [f"{INVALID} -18", ABSENT, FAILED]),
        ("total-short", [f"{INVALID} -1", ABSENT, FAILED]),
        ("total-beyond", [f"{INVALID} 65517", ABSENT, FAILED]),
    ],
)
def test_firmware_that_publishes_no_address_is_refused(
    launcher: Launcher, name: str, said: list[str], via: str
) -> None:
    """With the diagnostic of the reason, status 1 and no signal, before anything is measured."""
    path = launcher.put(f"{name}.fd", build_variant(name))
    launch = launcher(firmware=path, firmware_via=via, policy=SEV_ES)
    assert diagnostics(launch) == said
    assert (launch.exit.status, launch.exit.signal) == (1, None)
    assert launch.timeline.vmsa_updates == launch.timeline.runs == ()


@pytest.mark.parametrize(
    ("name", "via", "said"),
    [
        ("empty-file", "bios", "could not load PC BIOS"),
        ("truncated", "bios", "could not load PC BIOS"),
        ("empty-file", "pflash", "system firmware block device pflash0 has invalid size 0"),
        ("large", "pflash", "combined size of system firmware exceeds 8388608 bytes"),
    ],
)
def test_a_file_of_a_wrong_size_is_refused(launcher: Launcher, name: str, via: str, said: str) -> None:
    """Whatever its table holds: `-bios` wants whole 64 KiB, flash is 8 MiB at most."""
    path = launcher.put(f"{name}.fd", build_variant(name))
    launch = launcher(firmware=path, firmware_via=via, policy=SEV_ES)
    assert said in launch.stderr.text
    assert (launch.exit.status, launch.exit.signal) == (1, None)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("valid", (0x800000, 0xB004)),
        ("reset-only", (0x800000, 0xB004)),
        ("other-address", (0x120000, 0x3456)),
        ("high-address", (0xFFFF0000, 0xFFFF)),
        ("two-blocks", (0x800000, 0xB004)),
        ("legacy", (0x800000, 0xB004)),
        ("entry-wide", (0x800000, 0xB004)),
        ("total-odd", (0x800000, 0xB004)),
        ("overlap-after", (0x800000, 0xB004)),
    ],
)
def test_an_ap_starts_where_the_firmware_says(launcher: Launcher, name: str, wanted: tuple[int, int]) -> None:
    """The published address reaches KVM for the AP and not for the BSP."""
    path = launcher.put(f"{name}.fd", build_variant(name))
    launch = launcher(firmware=path, policy=SEV_ES, vcpus=2)
    assert launch.exit.status == 0
    assert starts_at(launch, 1) == wanted
    assert starts_at(launch, 0) == (0xFFFF0000, 0xFFF0)


@pytest.mark.xfail(
    reason="QEMU believes the length of a reset block, even before the image (sev_es_find_reset_vector)"
)
@pytest.mark.parametrize("name", ["entry-bare", "entry-odd", "legacy-short", "legacy-long"])
def test_a_reset_block_of_a_wrong_length_is_refused(launcher: Launcher, name: str) -> None:
    """An address is 4 bytes; `legacy-long` even ends QEMU 7.2 with SIGSEGV."""
    path = launcher.put(f"{name}.fd", build_variant(name))
    launch = launcher(firmware=path, policy=SEV_ES, vcpus=2)
    assert (launch.exit.status, launch.exit.signal) == (1, None)


@pytest.mark.parametrize("name", ["valid", "no-block", "no-table", "zero-address", "total-beyond", "noise"])
def test_sev_without_es_boots_any_table(launcher: Launcher, name: str) -> None:
    """The control: it is for SEV-ES alone that the table decides."""
    path = launcher.put(f"{name}.fd", build_variant(name))
    launch = launcher(firmware=path, policy=SEV)
    assert launch.timeline.stage == Stage.RUNNING
    assert (launch.exit.status, launch.exit.signal) == (0, None)


def test_64_mib_of_firmware_boot(launcher: Launcher, tmp_path: Path, target: Target) -> None:
    """QEMU has no upper limit for `-bios`; the model shares our file system, which spares the transfer."""
    assert target.entry.model
    path = tmp_path / "huge.fd"
    path.write_bytes(build_variant("huge"))
    launch = launcher(firmware=str(path), policy=SEV_ES, vcpus=2)
    assert starts_at(launch, 1) == (0x800000, 0xB004)


def test_64_mib_of_noise_are_refused(launcher: Launcher, tmp_path: Path, target: Target) -> None:
    """The same diagnostic as for a small file."""
    assert target.entry.model
    path = tmp_path / "noise.fd"
    path.write_bytes(build_variant("huge-noise"))
    launch = launcher(firmware=str(path), policy=SEV_ES)
    assert diagnostics(launch) == [ABSENT, FAILED]
    assert (launch.exit.status, launch.exit.signal) == (1, None)


def test_a_file_is_uploaded_in_pieces(launcher: Launcher, target: Target) -> None:
    """A file of more than one frame reaches the host whole, once."""
    whole = os.urandom((20 << 20) + 1)
    path = launcher.put("large", whole)
    assert Path(path).read_bytes() == whole
    assert launcher.put("large", whole) == path
    assert launcher.put("large", b"other") != path


@pytest.mark.parametrize("name", ["valid", "empty-file"])
def test_a_small_file_comes_with_the_launch(launcher: Launcher, name: str) -> None:
    """It is there, whole, once a guest that uses it was launched, and is sent once."""
    launcher.put("first", b"says where the agent keeps files")
    content = build_variant(name)
    path = launcher.put(f"small-{name}", content)
    assert not Path(path).exists()
    launcher.launch(GuestSpec(firmware=path))
    assert Path(path).read_bytes() == content
    Path(path).unlink()
    launcher.launch(GuestSpec(firmware=path))
    assert not Path(path).exists()


def test_a_small_file_that_cannot_be_written(launcher: Launcher) -> None:
    """It is the launch that fails, and the file goes with the next one."""
    launcher.put("first", b"says where the agent keeps files")
    path = Path(launcher.put("small-again", build_variant("valid")))
    path.mkdir()
    with pytest.raises(AgentRemoteError, match="EISDIR"):
        launcher.launch(GuestSpec(firmware=str(path)))
    path.rmdir()
    launcher.launch(GuestSpec(firmware=str(path)))
    assert path.read_bytes() == build_variant("valid")


@pytest.mark.parametrize("path", ["/", "/nonexistent/OVMF.fd"], ids=["directory", "missing"])
def test_a_path_that_is_no_file(launcher: Launcher, path: str) -> None:
    """A directory and a file that is not there are refused by the VMM, in its own words."""
    assert "could not load PC BIOS" in launcher(firmware=path).account()
