# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw facts: every item stands alone, and a failing one says why."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent import board, cpuid, facts
from pytest_seves.spec import kvm, sev

Patch = pytest.MonkeyPatch
ITEMS = {
    *(
        "python",
        "time_ns",
        "devices",
        "vm_types",
        "vmsa_features",
        "platform_status",
        "snp_platform_status",
        "uname",
        "user",
        "uid",
    ),
    *("groups", "cap_eff", "cpuid", "params", "misc", "memlock", "microcode", "vmm", "firmware"),
    *("dmi", "kernel_build_id"),
    "guest_kernel",
}


def refuse(code: int) -> Callable[..., Any]:
    """A function that fails as a system call does."""

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_nothing_can_be_opened_and_every_item_still_answers(monkeypatch: Patch) -> None:
    """A host that refuses everything yields facts, not a traceback."""
    for name in ("open", "stat", "uname", "pread", "scandir", "getgroups", "sched_setaffinity"):
        monkeypatch.setattr(os, name, refuse(errno.EACCES))
    got = facts.gather({"vmm": "/bin/sh", "firmware": "/x.fd"})
    assert got.keys() == ITEMS
    assert got["devices"] == {"/dev/kvm": {"open": "EACCES"}, "/dev/sev": {"open": "EACCES"}}
    assert got["platform_status"] == {"errno": "EACCES", "fw_error": None}
    assert (got["vm_types"], got["snp_platform_status"]) == (None, None)
    assert got["cpuid"]["source"] is None
    assert got["cpuid"]["device"]["errno"] == "EACCES"
    assert got["uname"]["errno"] == got["groups"]["errno"] == got["microcode"]["errno"] == "EACCES"
    assert got["params"] == {"kvm_amd": {}, "ccp": {}, "kvm": {}}
    assert got["misc"] == {"capacity": None, "current": None}
    assert got["firmware"] == {"path": "/x.fd", "errno": "EACCES", "error": "Permission denied"}
    assert json.loads(json.dumps(got)) == got


def test_odd_arguments_do_not_stop_the_other_items() -> None:
    """Without VMM and firmware, or with nonsense for them, the rest is there."""
    assert facts.gather({})["vmm"] == {"path": None, "error": "no VMM named"}
    got = facts.gather({"vmm": ["x"], "firmware": {"a": 1}})
    assert got["vmm"]["error"].startswith("TypeError")
    assert got["firmware"]["error"].startswith("TypeError")
    assert got["uid"] == os.geteuid()


def test_the_facts_module_runs_on_a_bare_interpreter() -> None:
    """Standard library and spec only: nothing else is importable in the zipapp on the host."""
    code = "import sys; from pytest_seves.agent import facts; facts.gather({}); print(*sys.modules)"
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True,
        check=True,
        text=True,
    )
    ours = {name for name in process.stdout.split() if name.startswith("pytest_seves.")}
    assert {name.split(".")[1] for name in ours} == {"agent", "spec"}
    assert "pytest" not in process.stdout.split()


def test_the_kernels_cpuid_and_the_instruction_agree() -> None:
    """Oracle for the hand-made machine code: the kernel's own CPUID device."""
    static = (0, 0x80000000, 0x80000002, 0x80000003, 0x80000004)
    try:
        wanted = cpuid._device(static)
    except OSError as error:
        pytest.skip(f"/dev/cpu/0/cpuid: {error}")
    before = os.sched_getaffinity(0)
    assert cpuid._native(static) == wanted
    assert os.sched_getaffinity(0) == before


def test_cpuid_falls_back_to_the_instruction(monkeypatch: Patch) -> None:
    """Most users cannot read /dev/cpu/0/cpuid; the answer says where it is from and why."""
    monkeypatch.setattr(cpuid, "_device", refuse(errno.EACCES))
    got = cpuid.read((0,))
    assert got["source"] == "native"
    assert got["device"]["errno"] == "EACCES"
    assert struct.pack("<3I", *(got["leaves"]["0x0"][i] for i in (1, 3, 2))).isalpha()


def test_another_architecture_says_so(monkeypatch: Patch) -> None:
    """Machine code for x86-64 is not run elsewhere."""
    monkeypatch.setattr(cpuid, "_device", refuse(errno.ENOENT))
    monkeypatch.setattr(os, "uname", lambda: type("U", (), {"machine": "aarch64"}))
    assert cpuid.read((0,))["error"] == "ValueError: CPUID is of x86-64; this is aarch64"


class Devices:
    """Stands where fcntl.ioctl stands: answers as a SEV-ES host does."""

    status = sev.SEV_USER_DATA_STATUS.encode(
        api_major=1, api_minor=55, state=1, flags=0x100, build=8, guest_count=2
    )
    snp: bytes | int = errno.EINVAL

    def ioctl(self, _descriptor: int, request: int, argument: Any, _mutate: bool = False) -> int:
        """The three requests that facts need."""
        if request == kvm.KVM_GET_API_VERSION:
            return 12
        if request == kvm.KVM_CHECK_EXTENSION:
            assert argument == kvm.KVM_CAP_VM_TYPES
            return 0b1101
        if request == kvm.KVM_GET_DEVICE_ATTR:
            _, _, _, where = struct.unpack("<IIQQ", argument)
            ctypes.c_uint64.from_address(where).value = 0x20
            return argument  # type: ignore[no-any-return]  # as fcntl.ioctl does with bytes
        assert request == sev.SEV_ISSUE_CMD
        size = sev.SEV_ISSUE_CMD_DATA.size
        command = sev.SEV_ISSUE_CMD_DATA.decode(argument[:size].tobytes())
        answer = self.status if command["cmd"] == sev.SevIssue.SEV_PLATFORM_STATUS else self.snp
        if isinstance(answer, int):
            command["error"] = 0x15
            argument[:size] = type(argument)("B", sev.SEV_ISSUE_CMD_DATA.encode(**command))
            raise OSError(answer, os.strerror(answer))
        at = command["data"] - argument.buffer_info()[0]
        argument[at : at + len(answer)] = type(argument)("B", answer)
        return 0


@pytest.fixture
def devices(monkeypatch: Patch) -> Devices:
    """Devices that open, and answer."""
    stand_in = Devices()
    monkeypatch.setattr("fcntl.ioctl", stand_in.ioctl)
    monkeypatch.setattr(
        facts, "_open_device", lambda path, found: found.update({path: {"open": "ok"}}) or os.dup(2)
    )
    return stand_in


def test_the_platform_status_is_raw(devices: Devices) -> None:
    """The twelve bytes as the kernel wrote them; a refused SNP status keeps errno and code."""
    got = facts.gather({})
    assert got["devices"]["/dev/kvm"] == {"open": "ok", "api": 12}
    assert got["vm_types"] == 0b1101
    assert got["vmsa_features"] == 0x20
    assert got["platform_status"] == {"hex": devices.status.hex()}
    assert got["snp_platform_status"] == {"errno": "EINVAL", "fw_error": 0x15}


def test_the_snp_status_is_raw(devices: Devices) -> None:
    """32 bytes, where SNP is initialised."""
    devices.snp = bytes(range(32))
    assert facts.gather({})["snp_platform_status"] == {"hex": bytes(range(32)).hex()}


def test_a_real_device_that_knows_no_sev_answers_with_errno() -> None:
    """The kernel itself as oracle: SEV_ISSUE_CMD on something else is ENOTTY, and no exception."""
    descriptor = os.open("/dev/null", os.O_RDWR)
    try:
        assert facts.issue(descriptor, sev.SevIssue.SEV_PLATFORM_STATUS, 12) == {
            "errno": "ENOTTY",
            "fw_error": 0,
        }
    finally:
        os.close(descriptor)


def test_a_closed_device_names_its_group(tmp_path: Path, monkeypatch: Patch) -> None:
    """EACCES comes with mode and group, which the advice needs."""
    node = tmp_path / "sev"
    node.touch()
    node.chmod(0o660)
    monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    found: dict[str, Any] = {}
    assert facts._open_device(str(node), found) is None
    assert found[str(node)] == {"open": "EACCES", "mode": "0660", "group": facts._group_name(os.getegid())}


@pytest.mark.parametrize("at_root", [True, False], ids=["root", "children"])
def test_asids_in_use(tmp_path: Path, monkeypatch: Patch, at_root: bool) -> None:
    """misc.current of the root, or the sum over its children where the root has none."""
    (tmp_path / "misc.capacity").write_text("sev 410\nsev_es 99\n")
    for name, used in (("a", 1), ("b", 2), ("c", None)):
        (tmp_path / name).mkdir()
        if used:
            (tmp_path / name / "misc.current").write_text(f"sev 0\nsev_es {used}\n")
    if at_root:
        (tmp_path / "misc.current").write_text("sev 7\nsev_es 9\n")
    monkeypatch.setattr(facts, "MISC_ROOTS", (str(tmp_path / "absent"), str(tmp_path)))
    wanted = {"sev": 7, "sev_es": 9} if at_root else {"sev": 0, "sev_es": 3}
    assert facts.misc() == {"capacity": {"sev": 410, "sev_es": 99}, "current": wanted}


def test_a_misc_file_of_another_form_is_no_number(tmp_path: Path, monkeypatch: Patch) -> None:
    """Unknown lines are left out."""
    (tmp_path / "misc.capacity").write_text("sev max\nsev_es 99 1\n\nsgx_epc 12\n")
    monkeypatch.setattr(facts, "MISC_ROOTS", (str(tmp_path),))
    assert facts.misc() == {"capacity": {"sgx_epc": 12}, "current": None}


def script(path: Path, body: str) -> str:
    """An executable that stands for a VMM."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("echo oops >&2; exit 3", "--version ended with 3: 'oops'"),
        ("exit 0", "--version ended with 0: ''"),
        ("exec sleep 60", "--version did not end within 0.2 s"),
        ("sleep 60 & sleep 60", "--version did not end within 0.2 s"),
        ("exec yes", "--version did not end within 0.2 s"),
    ],
)
def test_a_vmm_that_tells_no_version(tmp_path: Path, monkeypatch: Patch, body: str, wanted: str) -> None:
    """A failing, silent, hanging or endless VMM is a fact; it is killed with its children."""
    monkeypatch.setattr(facts, "VERSION_TIMEOUT_S", 0.2)
    got = facts._vmm(script(tmp_path / "vmm", body))
    assert wanted in got["error"]
    assert "version_line" not in got


def test_a_vmm_that_is_not_there() -> None:
    """The PATH that was searched is part of the answer."""
    got = facts._vmm("no-such-vmm")
    assert (got["errno"], got["path"]) == ("ENOENT", "no-such-vmm")
    assert "PATH=" in got["error"]


def test_a_vmm_behind_a_link(tmp_path: Path, monkeypatch: Patch) -> None:
    """Found through PATH; the hash is of the file that runs."""
    real = Path(script(tmp_path / "real", "echo 'QEMU emulator version 9.1.0'; echo more"))
    (tmp_path / "qemu").symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert facts._vmm("qemu") == {
        "path": str(tmp_path / "qemu"),
        "resolved": str(real),
        "sha256": hashlib.sha256(real.read_bytes()).hexdigest(),
        "version_line": "QEMU emulator version 9.1.0",
    }


def elf_note(name: bytes, kind: int, content: bytes) -> bytes:
    """One ELF note: name and content padded to 4 bytes."""
    padded = (part + bytes(-len(part) % 4) for part in (name, content))
    return struct.pack("<3I", len(name), len(content), kind) + b"".join(padded)


@pytest.mark.parametrize(
    ("notes", "wanted"),
    [
        (elf_note(b"Xen\0", 6, b"abcde") + elf_note(b"GNU\0", 3, bytes(range(20))), bytes(range(20)).hex()),
        (elf_note(b"GNU\0", 1, b"abcd"), None),
        (elf_note(b"Linux\0", 3, b"abcd"), None),
        (struct.pack("<3I", 4, 0xFFFFFFFF, 1) + b"GNU\0", None),
        (b"\xff" * 11, None),
        (b"", None),
    ],
)
def test_the_build_id_of_the_running_kernel(
    notes: bytes, wanted: str | None, monkeypatch: Patch, tmp_path: Path
) -> None:
    """Found among the kernel's ELF notes, whatever else they hold; None where it is not there."""
    (tmp_path / "notes").write_bytes(notes)
    monkeypatch.setattr(board, "KERNEL_NOTES", str(tmp_path / "notes"))
    assert facts.gather({})["kernel_build_id"] == wanted
