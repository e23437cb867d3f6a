# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's unmodified QEMU on the model host, over ssh."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure import vcpu_types
from sevsnpmeasure.ovmf import OVMF
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmsa import VMSA

from pytest_seves.model.host import ModelHost
from pytest_seves.spec import vmsa
from tests.model.driving import Guest, Ssh, qemu_command

FIRMWARE = "/usr/share/ovmf/OVMF.fd"
Launch = Callable[..., Guest]
FirmwareLog = Callable[[], list[dict[str, Any]]]


def legacy_pages(vcpus: int, cpu: str) -> list[bytes]:
    """sev-snp-measure's save areas without the FPU fields, which it always fills as KVM_SEV_INIT2 does."""
    pages = VMSA(SevMode.SEV_ES, OVMF(FIRMWARE).sev_es_reset_eip(), vcpu_types.CPU_SIGS[cpu], 0).pages(vcpus)
    out = []
    for page in pages:
        legacy = bytearray(page)
        for name in ("mxcsr", "x87_fcw"):
            field = vmsa.VMSA.field(name)
            legacy[field.offset : field.offset + field.size] = bytes(field.size)
        out.append(bytes(legacy))
    return out


def commands(entries: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Names and status codes of what reached the firmware."""
    return [(entry["command"], entry["status"]) for entry in entries if entry["command"].isupper()]


def test_smm_is_refused(ssh: Ssh, firmware_log: FirmwareLog) -> None:
    """KVM_CAP_X86_SMM of an ES VM is 0: QEMU refuses smm=on, after the firmware's LAUNCH_START."""
    run = ssh(qemu_command(machine="smm=on"))
    assert run.returncode == 1
    assert "System Management Mode not supported by this hypervisor." in run.stderr
    assert commands(firmware_log())[-2:] == [("DEACTIVATE", 0), ("DECOMMISSION", 0)]


def test_policy_that_wants_a_newer_firmware_is_refused(ssh: Ssh) -> None:
    """LAUNCH_START fails with POLICY_FAILURE, which QEMU reports."""
    run = ssh(qemu_command(policy=5 | 2 << 16))
    assert run.returncode == 1
    assert "LAUNCH_START" in run.stderr
    assert "fw_error=7" in run.stderr


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("linux-6.1:sev_es=N", "ret=-25 fw_error=0"),
        ("linux-6.1:es_asids=0", "ret=-25 fw_error=0"),
        ("linux-6.1:platform_es=N", "host SEV-ES support unavailable"),
        ("linux-6.1:sev=N", "Failed to open /dev/sev"),
    ],
)
def test_host_without_es_is_told_apart(ssh: Ssh, profile: str, message: str) -> None:
    """Each way a host lacks SEV-ES shows in QEMU's own words."""
    with ModelHost.start(profile) as host:
        assert message in ssh(qemu_command(), on=host).stderr


def test_exhausted_asids_are_refused(ssh: Ssh, launch: Launch) -> None:
    """KVM_SEV_ES_INIT is EBUSY with all ES ASIDs in use; a plain SEV guest still starts."""
    with ModelHost.start("linux-6.1:es_asids=1") as host:
        first = launch(on=host)
        assert "ret=-16 fw_error=0" in ssh(qemu_command(), on=host).stderr
        assert launch(on=host, policy=1).quit() == 0
        assert first.quit() == 0
        assert launch(on=host).quit() == 0


@pytest.mark.parametrize("cpu", ["EPYC-v3", "EPYC-Milan"])
@pytest.mark.parametrize("vcpus", [1, 2, 16])
def test_launch_digest_is_sev_snp_measures(
    launch: Launch, firmware_log: FirmwareLog, vcpus: int, cpu: str
) -> None:
    """Firmware image and save areas that QEMU really set, against an outside calculator."""
    guest = launch(vcpus=vcpus, cpu=cpu)
    assert guest("query-sev")["policy"] == 5
    assert guest.quit() == 0
    wanted = hashlib.sha256(Path(FIRMWARE).read_bytes())
    pages = legacy_pages(vcpus, cpu)
    for page in pages:
        wanted.update(page)
    entries = firmware_log()
    seen = [entry["sha256"] for entry in entries if entry["command"] == "LAUNCH_UPDATE_VMSA"]
    assert seen == [hashlib.sha256(page).hexdigest() for page in pages]
    assert [e["sha256"] for e in entries if e["command"] == "launch digest"] == [wanted.hexdigest()]


def test_firmware_commands_come_in_the_architectures_order(launch: Launch, firmware_log: FirmwareLog) -> None:
    """One LAUNCH_UPDATE_VMSA for each vCPU, the length query before the measurement, nothing left behind."""
    guest = launch(vcpus=2)
    measurement = base64.b64decode(guest("query-sev-launch-measure")["data"])
    guest.quit()
    assert len(measurement) == 48
    assert [entry for entry in commands(firmware_log()) if entry[0] != "DF_FLUSH"] == [
        ("PLATFORM_STATUS", 0),
        ("LAUNCH_START", 0),
        ("ACTIVATE", 0),
        ("LAUNCH_UPDATE_DATA", 0),
        ("LAUNCH_UPDATE_VMSA", 0),
        ("LAUNCH_UPDATE_VMSA", 0),
        ("LAUNCH_MEASURE", 4),
        ("LAUNCH_MEASURE", 0),
        ("LAUNCH_FINISH", 0),
        ("DEACTIVATE", 0),
        ("DECOMMISSION", 0),
    ]


def test_running_guest_answers_stop_and_continue(launch: Launch) -> None:
    """Every vCPU can be kicked out of KVM_RUN, again and again."""
    guest = launch(vcpus=4)
    for _ in range(20):
        guest("stop")
        assert guest("query-status")["status"] == "paused"
        guest("human-monitor-command", **{"command-line": "info registers -a"})
        guest("cont")
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0


def test_protected_registers_show_nothing(launch: Launch) -> None:
    """Segments and CR3 of a protected vCPU read as zero, CR0 as KVM tracks it (the legacy VM type)."""
    text = launch(extra="-S")("human-monitor-command", **{"command-line": "info registers"})
    assert "CS =0000 00000000 00000000 00000000" in text
    assert "CR0=60000010" in text
    assert "FCW=0000" in text
    assert "EIP=0000fff0" in text


def test_host_sees_ciphertext(launch: Launch) -> None:
    """The firmware volume's last 16 bytes, read through the VMM, are not those of the file."""
    text = launch()("human-monitor-command", **{"command-line": "xp /16xb 0xfffffff0"})
    seen = bytes(int(word, 16) for line in text.splitlines() for word in line.split(":")[1].split())
    assert seen != Path(FIRMWARE).read_bytes()[-16:]


def test_plain_sev_guest_has_no_vmsa(launch: Launch, firmware_log: FirmwareLog) -> None:
    """Policy 1: an ASID of the other range, no LAUNCH_UPDATE_VMSA."""
    guest = launch(policy=1, vcpus=2)
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0
    entries = firmware_log()
    assert "LAUNCH_UPDATE_VMSA" not in [entry["command"] for entry in entries]
    assert [entry["asid"] for entry in entries if entry["command"] == "ACTIVATE"] >= [100]


def test_guest_without_sev_runs(launch: Launch, firmware_log: FirmwareLog) -> None:
    """An ordinary VM never reaches the firmware, and may have SMM."""
    guest = launch(policy=None, machine="smm=on")
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0
    assert commands(firmware_log()) == []


def test_launch_prints_no_warning(launch: Launch) -> None:
    """The modelled CPU has every feature of QEMU's own model of it."""
    guest = launch(cpu="EPYC-Milan")
    guest("quit")
    guest.process.wait(30)
    assert guest.errors() == ""


def test_platform_certificates_are_exported(launch: Launch) -> None:
    """query-sev-capabilities reads PDH, chain and chip identity through /dev/sev."""
    answer = launch()("query-sev-capabilities")
    sizes = [len(base64.b64decode(answer[name])) for name in ("pdh", "cert-chain", "cpu0-id")]
    assert sizes == [2084, 6252, 64]


def test_system_reset_ends_the_guest(launch: Launch) -> None:
    """QEMU 7.2 cannot reset an ES guest, and says so."""
    guest = launch()
    guest("system_reset")
    guest.process.wait(30)
    assert "cpus are not resettable, terminating" in guest.errors()


def test_strace_works_on_top(ssh: Ssh, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A ptrace tracer that stops at system calls sees the requests before the model answers them."""
    log = tmp_path_factory.mktemp("strace") / "log"
    command = qemu_command().replace("exec ", f"exec strace -f -e trace=ioctl -o {log} ")
    quit_at_once = '\'{"execute":"qmp_capabilities"}{"execute":"quit"}\''
    run = ssh(f"echo {quit_at_once} | ( {command} )")
    if "strace: not found" in run.stderr:
        pytest.skip("strace is not installed")
    assert run.returncode == 0
    text = log.read_text()
    assert "KVM_MEMORY_ENCRYPT_OP" in text
    assert "KVM_RUN" in text
