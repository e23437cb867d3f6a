# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's OVMF under the machine's QEMU, both unmodified, reaches the UEFI shell on the model."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.host import ModelHost
from tests.model.driving import Guest

PROMPT = b"Shell>"
_DEADLINE_S = 300.0
_RAM = "-object memory-backend-memfd,id=ram,size=256M,share=on -m 256 -machine pc,memory-backend=ram"


def boot(guest: Guest, console: Path, host: ModelHost, wanted: bytes = PROMPT) -> dict[str, Any]:
    """Wait for a text on the console, end the VMM; the model's account of the guest."""
    before = len(host.guest_log.read_text().splitlines()) if host.guest_log.exists() else 0
    end = time.monotonic() + _DEADLINE_S
    while wanted not in (console.read_bytes() if console.exists() else b""):
        assert time.monotonic() < end, f"no {wanted!r} after {_DEADLINE_S:.0f} s"
        time.sleep(0.1)
    assert guest.quit() == 0
    while not (host.guest_log.exists() and len(host.guest_log.read_text().splitlines()) > before):
        assert time.monotonic() < end, f"nothing in {host.guest_log}"
        time.sleep(0.01)
    account: dict[str, Any] = json.loads(host.guest_log.read_text().splitlines()[-1])
    return account


def flash(tmp_path: Path) -> str:
    """Both chips, the variables in a copy: by -bios an encrypted guest reads memory that nobody wrote."""
    variables = tmp_path / "variables.fd"
    variables.write_bytes(Path("/usr/share/OVMF/OVMF_VARS.fd").read_bytes())
    code = "-drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd"
    return f"{code} -drive if=pflash,unit=1,format=raw,file={variables}"


@pytest.mark.slow
@pytest.mark.parametrize("policy", [None, 1], ids=["plain", "sev"])
def test_ovmf_reaches_its_shell_the_same_way_twice(
    launch: Callable[..., Guest], tmp_path: Path, policy: int | None
) -> None:
    """Two boots of a guest without SEV-ES on `pc` have the same exits, as far as both can be compared.

    That is until one has ended, or until QEMU's RTC told it to wait, which it reads after 110,000 exits.
    """
    with ModelHost.start("linux-6.1", tmp_path / "host") as host:
        accounts = []
        for number in range(2):
            console = tmp_path / f"console{number}"
            extra = f"{_RAM} -serial file:{console} -rtc base=2026-01-01"
            guest = launch(host, policy=policy, firmware=flash(tmp_path), extra=extra)
            accounts.append(boot(guest, console, host))
    seen = [account["checkpoints"] for account in accounts]
    shared = min(map(len, seen))
    assert shared > 5
    assert seen[0][:shared] == seen[1][:shared]
    assert not any(account["notes"] for account in accounts)


def floppy(name: bytes, content: bytes) -> bytes:
    """A FAT12 image with one file of one cluster (Microsoft, FAT File System Specification 1.03)."""
    boot = bytearray(b"\xeb\x3c\x90MSDOS5.0".ljust(510, b"\0") + b"\x55\xaa")
    struct.pack_into("<HBHBHHBHHHII", boot, 11, 512, 1, 1, 2, 224, 2880, 0xF0, 9, 18, 2, 0, 0)
    boot[38:62] = b"\x29\0\0\0\0NO NAME    FAT12   "
    table = b"\xf0\xff\xff\xff\x0f".ljust(9 * 512, b"\0")
    entry = name + b"\x20" + bytes(14) + struct.pack("<HI", 2, len(content))
    return (bytes(boot) + table * 2 + entry.ljust(14 * 512, b"\0") + content).ljust(2880 * 512, b"\0")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["disable-modern=on", "disable-legacy=on"], ids=["port", "memory"])
def test_ovmf_reads_a_virtio_disk(launch: Callable[..., Guest], tmp_path: Path, device: str) -> None:
    """The shell runs startup.nsh from it; each request was a write that signalled an eventfd of QEMU's."""
    console, disk = tmp_path / "console", tmp_path / "disk"
    disk.write_bytes(floppy(b"STARTUP NSH", b"echo FROM-THE-DISK\r\n"))
    with ModelHost.start("linux-6.1", tmp_path / "host") as host:
        drive = f"-drive if=none,id=disk,format=raw,file={disk} -device virtio-blk-pci,drive=disk,{device}"
        extra = f"{_RAM} -serial file:{console} -rtc base=2026-01-01 {drive}"
        guest = launch(host, policy=None, firmware=flash(tmp_path), extra=extra)
        account = boot(guest, console, host, b"\nFROM-THE-DISK")
    assert account["counts"]["0x40000"] > 10
    assert not account["notes"]


@pytest.mark.slow
def test_ovmf_brings_up_the_aps_of_an_es_guest(launch: Callable[..., Guest], tmp_path: Path) -> None:
    """Both APs leave their reset holds through real mode, again and again, and are parked at the shell."""
    console = tmp_path / "console"
    with ModelHost.start("linux-6.1", tmp_path / "host") as host:
        extra = f"{_RAM} -serial file:{console} -rtc base=2026-01-01"
        account = boot(launch(host, vcpus=3, firmware=flash(tmp_path), extra=extra), console, host)
    assert [vcpu["activity"] for vcpu in account["vcpus"][1:]] == ["RESET_HOLD"] * 2
    assert not account["notes"]
