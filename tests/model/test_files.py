# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session reads on the model host, through a real ssh."""

from __future__ import annotations

import shlex
import struct
import subprocess

import pytest

from pytest_seves.model import cpuid
from pytest_seves.model.host import ModelHost
from tests.model.driving import Ssh

#: Orphans, which end as children of the session's supervisor, while others open a file that it serves.
READ_AMONG_ORPHANS = """
import os, time
end = time.monotonic() + 2
for _ in range(4):
    if os.fork() == 0:
        while time.monotonic() < end:
            with open("/sys/fs/cgroup/misc.current") as file:
                if not file.read().startswith("sev "):
                    os._exit(1)
        os._exit(0)
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
print([os.wait()[1] for _ in range(4)])
"""
READ_CPUID = (
    "python3 -I -S -c 'import os; f = os.open(\"/dev/cpu/0/cpuid\", 0); print(os.pread(f, 16, {leaf}).hex())'"
)


def test_wrong_key_is_refused(host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody without the host's own client key gets in."""
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    where = ["-p", str(host.port), f"{host.user}@{host.address}", "true"]
    run = subprocess.run(
        ["ssh", "-F", "none", "-o", "IdentitiesOnly=yes", "-i", str(key), *options, *where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 255
    assert "Permission denied" in run.stderr


@pytest.mark.parametrize(
    "path", ["/sys/module/kvm_amd/parameters/sev_snp", "/sys/module/ccp/parameters/nothing"]
)
def test_parameter_of_another_kernel_is_absent(ssh: Ssh, path: str) -> None:
    """The machine's own modules never show through."""
    run = ssh(f"cat {path}")
    assert (run.returncode, run.stdout) == (1, "")
    assert "No such file" in run.stderr


def test_a_served_file_is_opened_whatever_else_ends(ssh: Ssh) -> None:
    """A child of the supervisor that ends meanwhile does not make the open return another descriptor."""
    run = ssh(f"python3 -I -S -c {shlex.quote(READ_AMONG_ORPHANS)}")
    assert (run.returncode, run.stdout) == (0, "[0, 0, 0, 0]\n")


def test_parameters_are_read_only(ssh: Ssh) -> None:
    """Writing a parameter is refused."""
    run = ssh("echo N > /sys/module/kvm_amd/parameters/sev_es")
    assert run.returncode != 0
    assert "Permission denied" in run.stderr


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/sys/module/kvm_amd/parameters/sev", "Y\n"),
        ("/sys/module/kvm_amd/parameters/sev_es", "Y\n"),
        ("/sys/module/kvm/parameters/mmio_caching", "Y\n"),
        ("/sys/module/ccp/parameters/psp_init_on_probe", "Y\n"),
        ("/sys/fs/cgroup/misc.capacity", "sev 410\nsev_es 99\n"),
        ("/sys/devices/system/cpu/cpu0/microcode/version", "0xa0011d7\n"),
    ],
)
def test_files_say_what_the_profile_says(ssh: Ssh, path: str, content: str) -> None:
    """Every file that the host's facts are read from."""
    assert ssh(f"cat {path}").stdout == content


def test_other_files_are_the_machines_own(ssh: Ssh) -> None:
    """Nothing else is touched."""
    with open("/etc/hostname", encoding="utf-8") as file:
        assert ssh("cat /etc/hostname").stdout == file.read()


def test_kernel_release_is_the_profiles(ssh: Ssh) -> None:
    """uname tells the modelled kernel."""
    assert ssh("uname -sr").stdout == "Linux 6.1.0-50-amd64\n"


def test_cpuid_publishes_the_c_bit_of_this_cpu(ssh: Ssh) -> None:
    """A VMM checks the C-bit with the CPUID instruction, so the published one is the CPU's own."""
    raw = bytes.fromhex(ssh(READ_CPUID.format(leaf=0x8000001F)).stdout)
    _, ebx, ecx, edx = struct.unpack("<4I", raw)
    assert ebx & 0x3F == cpuid.native(0x8000001F)[1] & 0x3F
    assert (ecx, edx) == (509, 100)


def test_cpuid_names_the_modelled_cpu(ssh: Ssh) -> None:
    """The brand string's second part."""
    assert bytes.fromhex(ssh(READ_CPUID.format(leaf=0x80000003)).stdout) == b"-Core Processor\0"


def test_exit_status_and_signal_come_through(ssh: Ssh) -> None:
    """The session ends as its command does."""
    assert ssh("exit 37").returncode == 37
    assert ssh("kill -SEGV $$").returncode == 255  # what the ssh client says of a signal


@pytest.mark.parametrize("path", ["/sys/class/dmi/id/bios_version", "/sys/kernel/notes"])
def test_the_machine_s_board_and_kernel_are_not_the_model_s(ssh: Ssh, path: str) -> None:
    """What this machine's BIOS and kernel are called says nothing of the modelled host."""
    run = ssh(f"cat {path}")
    assert run.returncode != 0
    assert "No such file" in run.stderr
