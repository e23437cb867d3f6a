# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of suites/boot have been seen to fail: on guests that boot a real kernel under TCG.

A VMM's defect changes what it makes of a guest's specification. The same VMM runs the result here, without
KVM, and the suite's own tests judge it. TCG encrypts nothing: what passes is the control of each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_seves.evidence.launch import Exit, Launch, Output
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.guest.defects import DEFECTS
from pytest_seves.guest.kernel import Linux
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.linux.initramfs import probe_initramfs
from pytest_seves.guest.qemu import arguments
from pytest_seves.guest.spec import OPTIONAL_VARIABLES, GuestSpec
from suites.boot import test_linux as suite
from tests.evidence import recording
from tests.generations.kernel import Kernel
from tests.guest.linux_machine import distribution_kernel

pytestmark = pytest.mark.xdist_group("linux")

SEABIOS = "bios-256k.bin"  # OVMF takes 10 s of each boot, and boots the same kernel
LIMIT_S = 240
#: A VMM that does not end is given so long after the guest has said all.
GRACE_S = 5
ES = (0x5, {"SEV", "SEV-ES"})
LINUX_DEFECTS = ("kernel-cpus-lost", "kernel-unencrypted", "reset-hangs", "reset-unexplained")


@dataclass(frozen=True)
class Machine:
    """Launches guests under TCG as a VMM with a defect would, and gives what is to be seen of them."""

    kernel: Kernel
    folder: Path
    defect: str = ""
    launched: dict[GuestSpec, Launch] = field(default_factory=dict)

    def __call__(self, **options: Any) -> Launch:
        """As a :class:`Launcher` is called; the same guest is launched once."""
        spec = GuestSpec.of(**options)
        if spec not in self.launched:
            self.launched[spec] = self._launch(spec)
        return self.launched[spec]

    def _launch(self, spec: GuestSpec) -> Launch:
        initrd = self.folder / "initrd"
        initrd.write_bytes(probe_initramfs(self.kernel.msr_module.read_bytes()))
        assert spec.variables == OPTIONAL_VARIABLES  # which SeaBIOS has none of
        spec = replace(spec, firmware_via="bios", variables=None, steps=())
        spec = replace(spec, kernel=str(self.kernel.image), initrd=str(initrd))
        if self.defect:
            spec = DEFECTS[self.defect].heeded(spec)
        assert spec.policy is None, "TCG encrypts nothing"
        return _launched(spec, self.folder)


def _launched(spec: GuestSpec, folder: Path) -> Launch:
    argv = arguments(spec, binary="qemu-system-x86_64", firmware=SEABIOS, cbit=51, reduced_phys_bits=1)
    console, errors = folder / "console", folder / "stderr"
    words = [word.replace("accel=kvm", "accel=tcg") for word in argv]
    words[words.index("socket,id=qmp,fd=3")] = "null,id=qmp"
    words[words.index("socket,id=console,fd=4")] = f"file,id=console,path={console}"
    with errors.open("wb") as said, subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=said) as vmm:
        killed = not _ends(vmm, console)
        vmm.kill()
        status = vmm.wait()
    ended = Exit(None, -status, killed) if status < 0 else Exit(status, None)
    records = [recording.create_vm(), *(recording.run(index) for index in range(spec.vcpus))]
    return Launch(
        host="tcg",
        argv=tuple(words),
        timeline=recording.timeline(records),
        recording_z=b"",
        qmp=QmpTranscript(None, (), ()),
        console=Output(console.read_bytes(), b"", 0),
        stdout=Output(b"", b"", 0),
        stderr=Output(errors.read_bytes(), b"", 0),
        exit=ended,
    )


def _ends(vmm: subprocess.Popen[bytes], console: Path) -> bool:
    """Wait until it has ended; no longer than `GRACE_S` once the guest has powered off or booted twice."""
    off = False
    for _ in range(LIMIT_S // GRACE_S):
        try:
            vmm.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            if off:
                return False
            said = console.read_bytes()
            off = b"reboot: Power down" in said or said.count(b" end scenario=linux") > 1
        else:
            return True
    return False


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """The distribution's kernel for virtual machines."""
    return distribution_kernel()


def verdicts(machine: Machine) -> dict[str, str]:
    """What the tests of suites/boot say, by requirement: of guests with 4 vCPUs, launched once for all."""
    linux = Linux(cast(Launcher, machine))
    encrypted = ES if machine.defect == "kernel-unencrypted" else (None, set())
    checks: dict[str, list[Callable[[], None]]] = {
        "BOOT-1": [lambda: suite.test_every_cpu_is_online(linux, 4, None)],
        "BOOT-2": [
            lambda: suite.test_the_kernel_names_the_encryption(linux, *encrypted),
            lambda: suite.test_sev_status_says_the_same(linux, *encrypted),
        ],
        "BOOT-3": [lambda: suite.test_cpus_go_and_come_back(linux, None)],
        "BOOT-4": [lambda: suite.test_a_power_off_ends_the_vm(linux, 4, None)],
        "BOOT-5": [lambda: suite.test_a_plain_guest_reboots(linux)],
    }
    return {name: " ".join(sorted({_outcome(check) for check in of})) for name, of in checks.items()}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except AssertionError:
        return "failed"
    return "passed"


def test_without_a_defect_each_control_passes(kernel: Kernel, tmp_path: Path) -> None:
    """A guest that is not encrypted passes every check of such guests."""
    assert set(verdicts(Machine(kernel, tmp_path)).values()) == {"passed"}


@pytest.mark.parametrize("name", LINUX_DEFECTS)
def test_a_defect_fails_its_checks(kernel: Kernel, tmp_path: Path, name: str) -> None:
    """Each defect fails what it says it breaks, every test of it, and nothing else."""
    seen = verdicts(Machine(kernel, tmp_path, name))
    assert {requirement for requirement, verdict in seen.items() if verdict == "failed"} == {
        broken for broken in DEFECTS[name].breaks if broken.startswith("BOOT-")
    }
    assert set(seen.values()) <= {"passed", "failed"}


def test_every_requirement_is_broken_by_one() -> None:
    """No check of suites/boot is left out here."""
    broken = {requirement for name in LINUX_DEFECTS for requirement in DEFECTS[name].breaks}
    assert broken >= {f"BOOT-{number}" for number in range(1, 6)}
