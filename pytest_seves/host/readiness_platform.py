# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness rows of the machine: CPU, kernel, device nodes and SEV firmware."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_seves.host.facts import Device, HostFacts
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.readiness_table import Row
from pytest_seves.spec import kvm, sev

#: Rows whose failure means that this machine does not offer SEV-ES.
CAPABILITY = frozenset(
    {"cpu", "asids", "kvm-sev-es", "dev-sev", "platform-es", "sb-3023", "vm-types", "asids-free"}
)

_VM_TYPE_SEV, _VM_TYPE_SEV_ES = 1 << 2, 1 << 3
#: LAUNCH_UPDATE_VMSA fails with INVALID_CONFIG on 0.16 (AMDESE/AMDSEV issue 41).
_LEAST_API = (0, 17)
_BIOS_ASIDS = 'BIOS: raise "SEV-ES ASID space limit" (AMD CBS) above 1; the ASIDs below it are for SEV-ES'
_UDEV_SEV = (
    'as root: echo \'KERNEL=="sev", GROUP="kvm", MODE="0660"\' > /etc/udev/rules.d/60-sev.rules;'
    " udevadm control --reload; udevadm trigger --name-match=sev"
)


def rows(facts: HostFacts, host: LabHost) -> Iterator[Row]:
    """All rows of this group."""
    yield _cpu(facts)
    yield _asids(facts)
    yield _kvm_parameter(facts)
    yield _device(facts, "/dev/kvm")
    yield _device(facts, "/dev/sev")
    yield _platform_state(facts)
    yield _platform_es(facts)
    yield _firmware_version(facts)
    yield _sb_3023(facts)
    yield _vm_types(facts)
    yield _asids_free(facts, host)
    yield _debug_swap(facts)


def _cpu(facts: HostFacts) -> Row:
    name = "CPU"
    if facts.sev is None or facts.sev_es is None:
        advice = (
            "CPUID could not be read: let the user read /dev/cpu/0/cpuid, or allow memory that is executable"
        )
        return Row("cpu", name, "unknown", f"source {facts.cpuid_source}", advice)
    bits = {"SEV": facts.sev, "SEV-ES": facts.sev_es, "SEV-SNP": bool(facts.snp)}
    has = " ".join(name if there else f"no-{name}" for name, there in bits.items())
    signature = f"{facts.signature:#010x}" if facts.signature is not None else "unknown"
    value = f"{facts.cpu or facts.vendor or 'unnamed'}, signature {signature}; leaf 0x8000001f: {has}"
    if not facts.sev_es:
        advice = "needs an AMD EPYC with SEV-ES; on one, BIOS: enable SMEE and SEV; in a VM: not nested"
        return Row("cpu", name, "fail", value, advice)
    return Row("cpu", name, "ok", f"{value}; C-bit {facts.cbitpos}, reduced {facts.reduced_phys_bits}")


def _asids(facts: HostFacts) -> Row:
    name = "ASIDs for SEV-ES"
    if facts.es_asids is None or facts.min_sev_asid is None:
        return Row("asids", name, "unknown", "leaf 0x8000001f not read", "see the CPU row")
    value = f"{facts.es_asids} of {facts.max_asid} (least ASID of a plain SEV guest: {facts.min_sev_asid})"
    if facts.es_asids == 0:
        return Row("asids", name, "fail", value, _BIOS_ASIDS if facts.sev_es else "see the CPU row")
    return Row("asids", name, "ok", value)


def _kvm_parameter(facts: HostFacts) -> Row:
    row, name = "kvm-sev-es", "kvm_amd.sev_es"
    parameters = facts.params.get("kvm_amd", {})
    value = parameters.get("sev_es")
    if not parameters:
        advice = "as root: modprobe kvm_amd; if it refuses, BIOS: enable SVM. This suite needs AMD's KVM"
        return Row(row, name, "fail", "kvm_amd is not loaded", advice)
    if value is None:
        return Row(
            row, name, "fail", "no such parameter", "this kernel has no SEV-ES for hosts: needs 5.11 or later"
        )
    if value in ("Y", "1"):
        return Row(row, name, "ok", value)
    advice = (
        "KVM turned SEV-ES off. Either it was told to (put 'options kvm_amd sev=1 sev_es=1' into"
        " /etc/modprobe.d/kvm-amd.conf and reload kvm_amd), or something it needs is missing: ASIDs (above),"
        " kvm.mmio_caching=Y, npt, nrips; dmesg | grep -i sev tells"
    )
    if facts.params.get("kvm", {}).get("mmio_caching") in ("N", "0"):
        advice = f"kvm.mmio_caching is N, and SEV-ES needs it: boot without kvm.mmio_caching=0. {advice}"
    return Row(row, name, "fail", value, advice)


def _device(facts: HostFacts, path: str) -> Row:
    row = path.strip("/").replace("/", "-")
    device = facts.devices.get(path, Device("unknown"))
    if device.open == "ok":
        if device.api not in (None, kvm.KVM_API_VERSION):
            advice = "this is no Linux KVM: the device answers with another API version"
            return Row(row, path, "fail", f"API version {device.api}, wanted {kvm.KVM_API_VERSION}", advice)
        return Row(row, path, "ok", "opens for reading and writing")
    node = f" (mode {device.mode}, group {device.group})" if device.mode else ""
    state = "unknown" if device.open == "unknown" else "fail"
    return Row(
        row, path, "unknown" if state == "unknown" else "fail", f"{device.open}{node}", _access(facts, path)
    )


def _access(facts: HostFacts, path: str) -> str:
    device = facts.devices.get(path, Device("unknown"))
    user = facts.user or "the user"
    if device.open in ("EACCES", "EPERM"):
        mode = int(device.mode, 8) if device.mode and device.mode.isdigit() else 0
        if (
            device.group
            and device.group != "root"
            and mode & 0o060 == 0o060
            and device.group not in facts.groups
        ):
            return f"as root: usermod -aG {device.group} {user}; it counts from the next login"
        if path == "/dev/sev":
            return f"{_UDEV_SEV}; usermod -aG kvm {user}. A sudo rule in the lab file is the other way"
        return f"the node is closed to {user}: its group should be kvm, mode 0660, and {user} in that group"
    if device.open in ("ENOENT", "ENODEV", "ENXIO"):
        if path == "/dev/sev":
            return "ccp found no SEV firmware: modprobe ccp; BIOS: enable SEV; dmesg | grep -i ccp tells"
        return "KVM is not there: modprobe kvm_amd; BIOS: enable SVM; in a container, pass the device in"
    return "the open failed in an unusual way: try it on the host as the same user"


def _platform_state(facts: HostFacts) -> Row:
    row, name = "platform", "SEV platform state"
    if facts.platform is None:
        opened = facts.devices.get("/dev/sev", Device("unknown")).open == "ok"
        advice = "PLATFORM_STATUS failed; dmesg | grep -i ccp tells" if opened else "see the /dev/sev row"
        return Row(row, name, "fail" if opened else "unknown", facts.platform_error or "not told", advice)
    platform = facts.platform
    value = (
        f"{platform.state_name}, {platform.guest_count} guests, owned {platform.owned} (raw {platform.raw})"
    )
    if platform.state == sev.PlatformState.UNINIT:
        told = facts.params.get("ccp", {}).get("psp_init_on_probe")
        advice = (
            "QEMU looks at the ES flag before KVM_SEV_ES_INIT initialises the platform, so the first SEV-ES"
            f" guest is refused. ccp.psp_init_on_probe is {told or 'unknown'}: set it to Y, or start a plain"
            " SEV guest first"
        )
        return Row(row, name, "fail", value, advice)
    return Row(row, name, "ok", value)


def _platform_es(facts: HostFacts) -> Row:
    row, name = "platform-es", "SEV platform has ES"
    if facts.platform is None or facts.platform.state == sev.PlatformState.UNINIT:
        advice = "the flag counts only once the platform is initialised: see the row above"
        return Row(row, name, "unknown", "not initialised, or not told", advice)
    if facts.platform.es:
        return Row(row, name, "ok", "flags bit 8 set")
    advice = (
        "the firmware was initialised without SEV-ES, mostly for want of memory: dmesg | grep 'TMR allocation"
        " failed'; reboot, or load ccp earlier, while memory is whole"
    )
    return Row(row, name, "fail", "flags bit 8 clear", advice)


def _firmware_version(facts: HostFacts) -> Row:
    row, name = "sev-firmware", "SEV firmware"
    if facts.platform is None:
        return Row(row, name, "unknown", facts.platform_error or "not told", "see the /dev/sev row")
    api = (facts.platform.api_major, facts.platform.api_minor)
    value = f"API {api[0]}.{api[1]} build {facts.platform.build}; microcode {facts.microcode or 'unknown'}"
    if api < _LEAST_API:
        advice = (
            "SEV-ES works from API 0.17 on: update the BIOS, or put AMD's SEV firmware into /lib/firmware/amd"
        )
        return Row(row, name, "fail", value, advice)
    return Row(row, name, "ok", value)


def _sb_3023(facts: HostFacts) -> Row:
    row, name = "sb-3023", "AMD-SB-3023"
    if facts.es_removed_by_firmware:
        advice = (
            "this SEV firmware refuses SEV-ES guests while SNP is initialised (CVE-2025-48514); it is policy,"
            " not a fault. To run SEV-ES: SNP off, by kvm_amd.sev_snp=0 or in the BIOS, and reboot"
        )
        return Row(row, name, "fail", f"SNP initialised, SNP SVN {facts.snp_svn:#04x}", advice)
    parameter = facts.params.get("kvm_amd", {}).get("sev_snp")
    if facts.snp_platform is None and parameter in ("Y", "1"):
        advice = (
            "SNP is on, but its TCB could not be read; firmware fixed for CVE-2025-48514 would refuse SEV-ES"
        )
        return Row(row, name, "unknown", f"kvm_amd.sev_snp={parameter}, no SNP_PLATFORM_STATUS", advice)
    if facts.snp_platform is None:
        return Row(row, name, "ok", f"SNP not in use (kvm_amd.sev_snp={parameter or 'absent'})")
    svn = "unknown" if facts.snp_svn is None else f"{facts.snp_svn:#04x}"
    return Row(row, name, "ok", f"SNP state {facts.snp_platform.state}, SNP SVN {svn}: SEV-ES not refused")


def _vm_types(facts: HostFacts) -> Row:
    row, name = "vm-types", "KVM_CAP_VM_TYPES"
    if facts.vm_types is None:
        return Row(row, name, "unknown", "not told", "see the /dev/kvm row")
    value = f"{facts.vm_types:#b}"
    if facts.vm_types & _VM_TYPE_SEV_ES:
        return Row(row, name, "ok", f"{value}: KVM_SEV_ES_INIT and KVM_SEV_INIT2")
    if facts.vm_types & _VM_TYPE_SEV:
        advice = (
            "this kernel knows SEV-ES VMs and says that they are unusable: dmesg | grep -i sev-es tells why"
        )
        return Row(row, name, "fail", f"{value}: SEV, but no SEV-ES", advice)
    return Row(row, name, "ok", f"{value}: no KVM_SEV_INIT2, which came with 6.10; KVM_SEV_ES_INIT at most")


def _asids_free(facts: HostFacts, host: LabHost) -> Row:
    row, name = "asids-free", "free ASIDs for SEV-ES"
    if facts.es_capacity == 0:
        return Row(row, name, "fail", "misc.capacity has none", f"KVM has no ASIDs for SEV-ES. {_BIOS_ASIDS}")
    free = facts.free_es_asids
    if free is None:
        advice = "not counted here (cgroup v2 with the misc controller counts them); a launch will tell"
        return Row(row, name, "unknown", "misc.capacity or misc.current not readable", advice)
    value = f"{free} of {facts.es_capacity}"
    if free == 0:
        return Row(row, name, "fail", value, f"all are in use: stop other SEV-ES guests of {host.name}")
    return Row(row, name, "ok", value)


def _debug_swap(facts: HostFacts) -> Row:
    row, name = "debug-swap", "kvm_amd.debug_swap"
    value = facts.params.get("kvm_amd", {}).get("debug_swap")
    if value in ("Y", "1"):
        advice = (
            "kernels 6.5 to 6.9 then set SEV_FEATURES bit 5 in each VMSA, and the launch digest is another"
            " one than elsewhere: kvm_amd.debug_swap=0 unless you mean it"
        )
        return Row(row, name, "warn", value, advice)
    return Row(row, name, "ok", value or "absent")
