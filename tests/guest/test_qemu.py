# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden command lines.

Origin: written by hand from docs/system/i386/amd-memory-encryption.rst of QEMU 9.1.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_seves.errors import Unsupported
from pytest_seves.guest.qemu import arguments, sev_guest_properties
from pytest_seves.guest.spec import GuestSpec, OwnerSession

LISTING = """sev-guest options:
  cbitpos=<uint32>
  kernel-hashes=<bool>   - add kernel hashes to guest firmware for measured Linux boot
  legacy-vm-type=<OnOffAuto> - use legacy VM type
"""
HOST: dict[str, Any] = {
    "properties": sev_guest_properties(LISTING),
    "binary": "/usr/bin/qemu-system-x86_64",
    "firmware": "/usr/share/ovmf/OVMF.fd",
    "cbit": 51,
    "reduced_phys_bits": 1,
}


def line(**options: Any) -> str:
    """The command line as one string."""
    return " ".join(arguments(GuestSpec.of(**options), **HOST))


def test_the_default_guest() -> None:
    """One vCPU, ES and NODBG, firmware by -bios."""
    assert line() == (
        "/usr/bin/qemu-system-x86_64 -nodefaults -no-user-config -name debug-threads=on "
        "-display none "
        "-machine q35,accel=kvm,confidential-guest-support=sev0 "
        "-object sev-guest,id=sev0,policy=0x5,cbitpos=51,reduced-phys-bits=1 "
        "-cpu EPYC-v3 -smp 1 -m 256M -bios /usr/share/ovmf/OVMF.fd "
        "-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control "
        "-chardev socket,id=console,fd=4 -serial chardev:console"
    )


def test_a_guest_without_encryption() -> None:
    """No policy: no sev-guest object and no confidential-guest-support."""
    assert "sev" not in line(policy=None)
    assert "-machine q35,accel=kvm -cpu" in line(policy=None)


def test_an_old_vmm_has_one_init_path() -> None:
    """Without legacy-vm-type, ES_INIT is what the VMM does anyway, and INIT2 is what it cannot do."""
    old = {**HOST, "properties": sev_guest_properties("sev-guest options:\n  cbitpos=<uint32>\n")}
    assert "legacy-vm-type" not in " ".join(arguments(GuestSpec(init_path="ES_INIT"), **old))
    with pytest.raises(Unsupported, match="has no legacy-vm-type"):
        arguments(GuestSpec(init_path="INIT2"), **old)


def test_a_vmm_that_measures_no_kernel() -> None:
    """Without the property kernel-hashes it is not asked to, and nothing is launched without them."""
    old = {**HOST, "properties": sev_guest_properties("sev-guest options:\n  cbitpos=<uint32>\n")}
    assert "kernel-hashes" not in " ".join(arguments(GuestSpec(kernel="/k"), **old))
    with pytest.raises(Unsupported, match="has no kernel-hashes"):
        arguments(GuestSpec(kernel="/k", kernel_hashes=True), **old)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vcpus": 64}, "-smp 64"),
        ({"policy": 0x7}, "policy=0x7,"),
        ({"paused": True}, "-serial chardev:console -S"),
        ({"memory_mib": 1024}, "-m 1024M"),
        ({"firmware": "/f.fd"}, "-bios /f.fd"),
        (
            {"firmware_via": "pflash"},
            "-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/ovmf/OVMF.fd",
        ),
        (
            {"firmware_via": "pflash", "firmware": "/c", "variables": "/v,1"},
            "file=/c -drive if=pflash,format=raw,unit=1,snapshot=on,file=/v,,1 -chardev",
        ),
        ({"machine": {"smm": "on"}}, "-machine q35,accel=kvm,smm=on,confidential-guest-support=sev0"),
        (
            {"machine": {"type": "pc", "kernel-irqchip": "split"}},
            "-machine pc,accel=kvm,kernel-irqchip=split,",
        ),
        ({"init_path": "INIT2"}, "reduced-phys-bits=1,legacy-vm-type=off"),
        ({"init_path": "ES_INIT"}, "reduced-phys-bits=1,legacy-vm-type=on"),
        ({"session": OwnerSession("/a,b", "/s")}, "dh-cert-file=/a,,b,session-file=/s"),
        ({"extra": ["-no-reboot"]}, "-serial chardev:console -no-reboot"),
        ({"cpu_model": "host"}, "-cpu host"),
        ({"kernel": "/k"}, "-bios /usr/share/ovmf/OVMF.fd -kernel /k -chardev"),
        (
            {"kernel": "/k", "initrd": "/i", "append": "console=ttyS0 a=b"},
            "-kernel /k -initrd /i -append console=ttyS0 a=b -chardev",
        ),
        ({"kernel": "/k", "kernel_hashes": True}, "reduced-phys-bits=1,kernel-hashes=on"),
        (
            {"kernel": "/k", "kernel_hashes": True, "init_path": "INIT2"},
            "legacy-vm-type=off,kernel-hashes=on",
        ),
    ],
)
def test_each_option(options: dict[str, Any], expected: str) -> None:
    """Each option of a guest becomes the arguments that QEMU documents for it."""
    assert expected in line(**options)
