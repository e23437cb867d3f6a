# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that knows KVM_SEV_INIT2 (9.1 and later) on the model host; `tox -e generations` fetches one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure import guest as calculator
from sevsnpmeasure import vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from pytest_seves.model.host import ModelHost
from tests.model.cpu import rom
from tests.model.driving import Guest, Ssh, qemu_command

FIRMWARE = "/usr/share/ovmf/OVMF.fd"
INIT2 = ",legacy-vm-type=off"


@pytest.fixture(scope="module")
def binary() -> str:
    """The second QEMU."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = sorted(cache.glob("pytest-seves-generations/*/qemu-system-x86_64"))
    if not found:
        pytest.skip("no second QEMU: tox -e generations fetches it")
    return str(found[-1])


@pytest.fixture(scope="module", params=["linux-6.12", "linux-6.18", "linux-7.2"])
def kernel(request: pytest.FixtureRequest, binary: str, host: ModelHost) -> Iterator[ModelHost]:
    """A host of each profile with VM types."""
    with ModelHost.start(request.param) as running:
        yield running


def digests(host: ModelHost) -> list[str]:
    """Launch digests that the firmware has told so far."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in host.firmware_log.read_text().splitlines()]
    return [entry["sha256"] for entry in entries if entry["command"] == "launch digest"]


def test_kernel_without_vm_types_is_told(ssh: Ssh, binary: str) -> None:
    """Linux 6.1 has no VM type for it: QEMU names the missing type."""
    run = ssh(qemu_command(binary=binary, sev_options=INIT2))
    assert run.returncode == 1
    assert "host kernel does not support requested KVM_X86_SEV_ES_VM VM type" in run.stderr


def test_smm_is_refused(kernel: ModelHost, ssh: Ssh, binary: str) -> None:
    """As on the legacy path: KVM_CAP_X86_SMM is 0 once KVM_SEV_INIT2 has made an ES guest."""
    run = ssh(qemu_command(binary=binary, sev_options=INIT2, machine="smm=on"), on=kernel)
    assert run.returncode == 1
    assert "System Management Mode not supported by this hypervisor." in run.stderr


def test_flash_is_refused(kernel: ModelHost, ssh: Ssh, binary: str) -> None:
    """KVM_CAP_READONLY_MEM of a VM with protected state is 0: no pflash, but for the legacy type."""
    flash = f"-drive if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"
    run = ssh(qemu_command(binary=binary, sev_options=INIT2, firmware=flash), on=kernel)
    assert run.returncode == 1
    assert "pflash with kvm requires KVM readonly memory support" in run.stderr


@pytest.mark.parametrize("vcpus", [1, 3])
def test_init2_digest_is_sev_snp_measures(
    kernel: ModelHost, launch: Callable[..., Guest], binary: str, vcpus: int
) -> None:
    """The whole calculator, unmodified: FPU fields are set as QEMU's reset leaves them."""
    guest = launch(on=kernel, binary=binary, sev_options=INIT2, vcpus=vcpus)
    guest("stop")
    guest("cont")
    assert guest("query-status")["status"] == "running"
    guest("quit")
    assert guest.process.wait(30) == 0
    assert guest.errors() == ""
    signature = vcpu_types.CPU_SIGS["EPYC-v3"]
    wanted = calculator.calc_launch_digest(
        SevMode.SEV_ES, vcpus, signature, FIRMWARE, None, None, None, 0, vmm_type=VMMType.QEMU
    )
    assert digests(kernel)[-1] == wanted.hex()


@pytest.mark.parametrize(
    "options",
    [{}, {"policy": 1}, {"policy": 1, "sev_options": INIT2}, {"policy": None, "machine": "smm=on"}],
    ids=["legacy-es", "legacy-sev", "init2-sev", "plain"],
)
def test_other_guests_start(
    kernel: ModelHost, launch: Callable[..., Guest], binary: str, options: dict[str, Any]
) -> None:
    """What else such a QEMU starts."""
    guest = launch(on=kernel, binary=binary, **options)
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0


def test_guest_executes(kernel: ModelHost, launch: Callable[..., Guest], binary: str, tmp_path: Path) -> None:
    """Both vCPUs of a VM of the SEV-ES type, from their save areas, with a newer QEMU."""
    image, console = tmp_path / "rom.bin", tmp_path / "console"
    image.write_bytes(rom.image())
    firmware, extra = f"-bios {image}", f"-serial file:{console}"
    guest = launch(on=kernel, binary=binary, sev_options=INIT2, vcpus=2, firmware=firmware, extra=extra)
    end = time.monotonic() + 20
    while not console.exists() or console.read_bytes() != rom.CONSOLE:
        assert time.monotonic() < end, guest("query-status")
    assert guest.quit() == 0
