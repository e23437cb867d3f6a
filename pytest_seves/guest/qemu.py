# SPDX-License-Identifier: GPL-2.0-or-later
"""GuestSpec to the command line of QEMU.

Source: docs/system/i386/amd-memory-encryption.rst and ``qapi/qom.json`` (SevGuestProperties) of QEMU 10.2;
every option used by default exists since 6.0.
"""

from __future__ import annotations

from .spec import GuestSpec

#: Descriptors that the agent hands to the VMM: connected UNIX sockets.
QMP_FD = 3
CONSOLE_FD = 4

_LEGACY_VM_TYPE = {"ES_INIT": "on", "INIT2": "off"}


def arguments(
    spec: GuestSpec, *, binary: str, firmware: str, cbit: int, reduced_phys_bits: int
) -> tuple[str, ...]:
    """The whole argument vector; pure.

    :param firmware: path on the host, used where the spec names none.
    :param cbit: position of the C-bit as the host's CPUID 0x8000001F EBX[5:0] tells.
    :param reduced_phys_bits: CPUID 0x8000001F EBX[11:6]; QEMU wants at least 1.
    """
    machine = [spec.machine, "accel=kvm", *(f"{name}={value}" for name, value in spec.machine_options)]
    secret: list[str] = []
    if spec.policy is not None:
        machine.append("confidential-guest-support=sev0")
        secret = ["-object", _sev_guest(spec, cbit, reduced_phys_bits)]
    return (
        binary,
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        *("-machine", ",".join(machine)),
        *secret,
        *("-cpu", spec.cpu_model),
        *("-smp", str(spec.vcpus)),
        *("-m", f"{spec.memory_mib}M"),
        *_firmware(spec, spec.firmware or firmware),
        *("-chardev", f"socket,id=qmp,fd={QMP_FD}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"),
        *(("-S",) if spec.paused else ()),
        *spec.extra,
    )


def _sev_guest(spec: GuestSpec, cbit: int, reduced_phys_bits: int) -> str:
    options = [
        "sev-guest",
        "id=sev0",
        f"policy={spec.policy:#x}",
        f"cbitpos={cbit}",
        f"reduced-phys-bits={reduced_phys_bits}",
    ]
    if spec.session:
        options.append(f"dh-cert-file={_escaped(spec.session.dh_cert)}")
        options.append(f"session-file={_escaped(spec.session.session)}")
    if spec.init_path:
        options.append(f"legacy-vm-type={_LEGACY_VM_TYPE[spec.init_path]}")
    return ",".join(options)


def _firmware(spec: GuestSpec, path: str) -> tuple[str, ...]:
    if spec.firmware_via == "bios":
        return ("-bios", path)
    return ("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_escaped(path)}")


def _escaped(value: str) -> str:
    """A value inside a QEMU option list, where a comma is written twice."""
    return value.replace(",", ",,")
