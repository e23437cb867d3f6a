# SPDX-License-Identifier: GPL-2.0-or-later
"""GuestSpec to the command line of QEMU.

Source: docs/system/i386/amd-memory-encryption.rst and ``qapi/qom.json`` (SevGuestProperties) of QEMU 10.2;
every option used by default exists since 6.0.
"""

from __future__ import annotations

from pytest_seves.errors import Unsupported

from .spec import GuestSpec

#: Descriptors that the agent hands to the VMM: connected UNIX sockets.
QMP_FD = 3
CONSOLE_FD = 4
GDB_FD = 5
#: The line of the human monitor that starts the gdbstub on that descriptor; it stops the guest.
START_GDBSTUB = "gdbserver chardev:gdb"

#: The monitor's thread, as it calls itself with ``debug-threads=on``; it uses no KVM.
UNWATCHED_THREADS = ("IO mon_iothread",)

_LEGACY_VM_TYPE = {"ES_INIT": "on", "INIT2": "off"}


def arguments(
    spec: GuestSpec,
    *,
    binary: str,
    firmware: str,
    cbit: int,
    reduced_phys_bits: int,
    properties: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """The whole argument vector; pure.

    :param firmware: path on the host, used where the spec names none.
    :param cbit: position of the C-bit as the host's CPUID 0x8000001F EBX[5:0] tells.
    :param reduced_phys_bits: CPUID 0x8000001F EBX[11:6]; QEMU wants at least 1.
    :param properties: those of the VMM's sev-guest object (:func:`sev_guest_properties`).
    :raise Unsupported: the VMM has no way to do what the spec asks for.
    """
    machine = [spec.machine, "accel=kvm", *(f"{name}={value}" for name, value in spec.machine_options)]
    secret: list[str] = []
    if spec.policy is not None:
        machine.append("confidential-guest-support=sev0")
        secret = ["-object", _sev_guest(spec, cbit, reduced_phys_bits, properties)]
    return (
        binary,
        "-nodefaults",
        "-no-user-config",
        *("-name", "debug-threads=on"),
        *("-display", "none"),
        *("-machine", ",".join(machine)),
        *secret,
        *("-cpu", spec.cpu_model),
        *("-smp", str(spec.vcpus)),
        *("-m", f"{spec.memory_mib}M"),
        *_firmware(spec, spec.firmware or firmware),
        *_kernel(spec),
        *("-chardev", f"socket,id=qmp,fd={QMP_FD}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"),
        *(("-chardev", f"socket,id=gdb,fd={GDB_FD}") if spec.debugged else ()),
        *(("-S",) if spec.paused else ()),
        *spec.extra,
    )


def attachable(qmp: str, hmp: str) -> tuple[str, ...]:
    """Further arguments: a QMP monitor and a human one, each at the path of a socket on the host."""
    monitors = {"qmp": (qmp, "control"), "hmp": (hmp, "readline")}
    return tuple(
        word
        for name, (path, mode) in monitors.items()
        for word in (
            *("-chardev", f"socket,id=kept-{name},path={_escaped(path)},server=on,wait=off"),
            *("-mon", f"chardev=kept-{name},mode={mode}"),
        )
    )


#: Arguments that make the VMM list the properties of its sev-guest object.
LIST_PROPERTIES = ("-object", "sev-guest,help")


def sev_guest_properties(listing: str) -> frozenset[str]:
    """Names out of what :data:`LIST_PROPERTIES` prints: lines of ``  name=<type> - text``."""
    words = (line.strip().partition("=")[0] for line in listing.splitlines() if "=" in line)
    return frozenset(word for word in words if word.replace("-", "").isalnum())


def _sev_guest(spec: GuestSpec, cbit: int, reduced_phys_bits: int, properties: frozenset[str]) -> str:
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
    if spec.init_path and "legacy-vm-type" in properties:
        options.append(f"legacy-vm-type={_LEGACY_VM_TYPE[spec.init_path]}")
    elif spec.init_path == "INIT2":
        raise Unsupported("this VMM has no KVM_SEV_INIT2: its sev-guest has no legacy-vm-type (QEMU 9.1 has)")
    if spec.kernel_hashes and "kernel-hashes" in properties:
        options.append("kernel-hashes=on")
    elif spec.kernel_hashes:
        raise Unsupported("this VMM measures no kernel: its sev-guest has no kernel-hashes (QEMU 6.2 has)")
    return ",".join(options)


def _firmware(spec: GuestSpec, path: str) -> tuple[str, ...]:
    if spec.firmware_via == "bios":
        return ("-bios", path)
    code = ("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_escaped(path)}")
    if spec.variables is None:
        return code
    return (*code, "-drive", f"if=pflash,format=raw,unit=1,snapshot=on,file={_escaped(spec.variables)}")


def _kernel(spec: GuestSpec) -> tuple[str, ...]:
    """Direct kernel boot: the firmware finds the three through fw_cfg."""
    if spec.kernel is None:
        return ()
    initrd = ("-initrd", spec.initrd) if spec.initrd else ()
    return ("-kernel", spec.kernel, *initrd, *(("-append", spec.append) if spec.append else ()))


def _escaped(value: str) -> str:
    """A value inside a QEMU option list, where a comma is written twice."""
    return value.replace(",", ",,")
