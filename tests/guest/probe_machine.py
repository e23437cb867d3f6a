# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest under an accelerator that knows nothing of SEV: an oracle from outside the project."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from pathlib import Path

import pytest

from pytest_seves.evidence.probe_report import ProbeReport, read_reports

DEADLINE_S = 60
#: q35 with what APIC ids above 254 need: interrupt remapping with extended destinations.
MANY_CPUS = ("-machine", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,eim=on")
#: What QEMU says where this KVM cannot have so many.
_TOO_MANY = ("exceeds the maximum cpus supported by KVM", "requires support on the KVM side")


def needs(accelerator: str) -> None:
    """Skip where the accelerator cannot be used."""
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened here")


def run_probe(
    folder: Path,
    image: bytes | None,
    *arguments: str,
    accelerator: str = "tcg",
    vcpus: int = 1,
    reports: int = 1,
) -> tuple[ProbeReport, ...]:
    """Boot the image and return what it said, once so many reports have their end.

    :param image: for ``-bios``; None where `arguments` bring the firmware.
    :param arguments: of QEMU, after ``-accel`` and ``-smp``; ``-machine q35`` where there are none.
    """
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-m", "64M"]
    argv += ["-accel", accelerator, "-smp", str(vcpus), "-serial", "stdio"]
    if image is not None:
        file = folder / "probe.bin"
        file.write_bytes(image)
        argv += ["-bios", str(file)]
    argv += arguments or ("-machine", "q35")
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as qemu:
        try:
            return read_reports(_console(qemu, reports))
        finally:
            qemu.kill()


def _console(qemu: subprocess.Popen[bytes], reports: int) -> bytes:
    assert qemu.stdout is not None
    assert qemu.stderr is not None
    console = b""
    end = time.monotonic() + DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while console.count(b" end ") < reports or not console.endswith(b"\n"):
            ready = selector.select(max(0, end - time.monotonic()))
            chunk = os.read(qemu.stdout.fileno(), 1 << 16) if ready else b""
            if not chunk:
                qemu.kill()
                said = qemu.stderr.read().decode()
                if any(words in said for words in _TOO_MANY):
                    pytest.skip(f"/dev/kvm: {said.strip()}")
                pytest.fail(f"wanted {reports} reports; console: {console[-2000:]!r}; stderr: {said}")
            console += chunk
    return console
