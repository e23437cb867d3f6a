# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw facts of the host: what files, devices and CPUID say, undecoded. Runs on the host (x86-64, Python 3.9).

Every item stands alone: one that cannot be had becomes ``{"errno": "EACCES", "error": "..."}``, and the
others are still there.
"""

from __future__ import annotations

import array
import errno
import fcntl
import grp
import os
import pwd
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pytest_seves.agent import board, cpuid, images
from pytest_seves.spec import kvm, sev
from pytest_seves.spec.layout import Layout

PARAMETERS = {
    "kvm_amd": (
        *("sev", "sev_es", "sev_snp", "debug_swap", "ciphertext_hiding_asids", "npt", "nrips", "lbrv"),
        *("vnmi", "intercept_smi", "dump_invalid_vmcb", "vls", "vgif", "avic", "nested"),
    ),
    "ccp": ("init_ex_path", "psp_init_on_probe", "psp_cmd_timeout", "psp_probe_timeout"),
    "kvm": ("mmio_caching",),
}
#: Where the misc controller may be: cgroup v2; v2 beside v1; v1.
MISC_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/misc")
VERSION_TIMEOUT_S = 10.0

Json = dict[str, Any]


def gather(args: Json) -> Json:
    """All facts of this host.

    :param args: ``vmm`` (program name or path), ``firmware``, ``kernel`` and ``msr_module`` (paths),
        ``cpuid_leaves`` (ints); all optional.
    """
    leaves = args.get("cpuid_leaves") or cpuid.LEAVES
    facts: Json = {"python": ".".join(map(str, sys.version_info[:3])), "time_ns": time.time_ns()}
    facts.update(item(_devices))
    items: dict[str, Callable[[], Any]] = {
        "uname": _uname,
        "user": _user,
        "uid": os.geteuid,
        "groups": _groups,
        "cap_eff": _effective_capabilities,
        "cpuid": lambda: cpuid.read(leaves),
        "params": _parameters,
        "misc": misc,
        "memlock": lambda: list(resource.getrlimit(resource.RLIMIT_MEMLOCK)),
        "microcode": _microcode,
        "dmi": board.dmi,
        "kernel_build_id": board.kernel_build_id,
        "vmm": lambda: _vmm(args.get("vmm")),
        "firmware": lambda: images.firmware(args.get("firmware")),
        "guest_kernel": lambda: images.kernel(args.get("kernel"), args.get("msr_module")),
    }
    facts.update((name, item(function)) for name, function in items.items())
    return facts


def item(function: Callable[[], Any]) -> Any:
    """What `function` returns, or why it cannot."""
    try:
        return function()
    except OSError as error:
        return _failure(error)
    except (ValueError, TypeError, LookupError, ImportError, struct.error) as error:
        return {"errno": None, "error": f"{type(error).__name__}: {error}"}


def _failure(error: OSError) -> Json:
    return {"errno": _errno_name(error), "error": error.strerror or str(error)}


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def _uname() -> Json:
    name = os.uname()
    return {key: getattr(name, key) for key in ("sysname", "release", "version", "machine")}


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _groups() -> list[str]:
    return sorted(_group_name(gid) for gid in {os.getegid(), *os.getgroups()})


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _effective_capabilities() -> str | None:
    for line in read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return line.split()[1]
    return None


def read(path: str, limit: int = 65536) -> str:
    """The beginning of a file, as text."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while limit > 0:
            part = os.read(descriptor, limit)
            if not part:
                break
            parts.append(part)
            limit -= len(part)
        return b"".join(parts).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


# sysfs, procfs


def _parameters() -> Json:
    found: Json = {}
    for module, names in PARAMETERS.items():
        values = {}
        for name in names:
            try:
                values[name] = read(f"/sys/module/{module}/parameters/{name}").strip()
            except OSError:
                continue  # another kernel, or the module is not loaded
        found[module] = values
    return found


def misc() -> Json:
    """ASIDs that the host has, and those in use, by the misc cgroup; None where it has none."""
    for root in MISC_ROOTS:
        try:
            capacity = _misc_numbers(f"{root}/misc.capacity")
        except OSError:
            continue
        return {"capacity": capacity, "current": _misc_current(root)}
    return {"capacity": None, "current": None}


def es_asids_in_use() -> int:
    """ASIDs that SEV-ES guests hold now; 0 where the host does not count them."""
    return int((misc()["current"] or {}).get("sev_es", 0))


def _misc_current(root: str) -> dict[str, int] | None:
    """Units in use.

    Older kernels have no misc.current in the root; the sum over its children misses only what processes in
    the root itself hold.
    """
    try:
        return _misc_numbers(f"{root}/misc.current")
    except OSError:
        pass
    total: dict[str, int] | None = None
    try:
        children = [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return None
    for child in children:
        try:
            numbers = _misc_numbers(f"{child}/misc.current")
        except OSError:
            continue
        total = {key: value + (total or {}).get(key, 0) for key, value in numbers.items()}
    return total


def _misc_numbers(path: str) -> dict[str, int]:
    rows = (line.split() for line in read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _microcode() -> str | None:
    try:
        return read("/sys/devices/system/cpu/cpu0/microcode/version").strip()
    except OSError:
        pass
    for line in read("/proc/cpuinfo", 4096).splitlines():
        if line.startswith("microcode"):
            return line.partition(":")[2].strip()
    return None


# Devices


def _devices() -> Json:
    """/dev/kvm and /dev/sev, opened as a VMM opens them: for reading and writing."""
    names = ("vm_types", "vmsa_features", "platform_status", "snp_platform_status")
    answer: Json = {"devices": {}, **dict.fromkeys(names)}
    descriptor = _open_device("/dev/kvm", answer["devices"])
    if descriptor is not None:
        try:
            answer["devices"]["/dev/kvm"]["api"] = _ioctl(descriptor, kvm.KVM_GET_API_VERSION, 0)
            types = _ioctl(descriptor, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_VM_TYPES)
            answer["vm_types"] = types if isinstance(types, int) else None
            answer["vmsa_features"] = _vmsa_features(descriptor)
        finally:
            os.close(descriptor)
    descriptor = _open_device("/dev/sev", answer["devices"])
    if descriptor is None:
        answer["platform_status"] = {"errno": answer["devices"]["/dev/sev"]["open"], "fw_error": None}
        return answer
    try:
        size = sev.SEV_USER_DATA_STATUS.size
        answer["platform_status"] = issue(descriptor, sev.SevIssue.SEV_PLATFORM_STATUS, size)
        answer["snp_platform_status"] = issue(
            descriptor, sev.SevIssue.SNP_PLATFORM_STATUS, sev.SEV_USER_DATA_SNP_STATUS.size
        )
    finally:
        os.close(descriptor)
    return answer


def _ioctl(descriptor: int, request: int, argument: int) -> Any:
    return item(lambda: fcntl.ioctl(descriptor, request, argument))


def _vmsa_features(descriptor: int) -> int | None:
    """SEV features that KVM_SEV_INIT2 takes; None on a kernel without it."""
    value = array.array("Q", [0])
    where = value.buffer_info()[0]
    attribute = struct.pack("<IIQQ", 0, kvm.KVM_X86_GRP_SEV, kvm.KVM_X86_SEV_VMSA_FEATURES, where)
    told = item(lambda: fcntl.ioctl(descriptor, kvm.KVM_GET_DEVICE_ATTR, attribute))
    return value[0] if isinstance(told, bytes) else None


def _open_device(path: str, devices: Json) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        devices[path] = {"open": _errno_name(error), **_owner(path)}
        return None
    devices[path] = {"open": "ok"}
    return descriptor


def _owner(path: str) -> Json:
    try:
        status = os.stat(path)
    except OSError:
        return {}
    return {"mode": f"{stat.S_IMODE(status.st_mode):04o}", "group": _group_name(status.st_gid)}


def issue(descriptor: int, command: int, size: int) -> Json:
    """SEV_ISSUE_CMD: the answer's bytes, or errno and the firmware's status code.

    The buffer is above 1024 bytes, so that fcntl hands the kernel the buffer itself: the status code is there
    after a failure too.
    """
    layout: Layout = sev.SEV_ISSUE_CMD_DATA
    buffer = array.array("B", bytes(4096))
    data_at = 2048
    head = layout.encode(cmd=int(command), data=buffer.buffer_info()[0] + data_at)
    buffer[: layout.size] = array.array("B", head)
    try:
        fcntl.ioctl(descriptor, sev.SEV_ISSUE_CMD, buffer, True)
    except OSError as error:
        return {
            "errno": _errno_name(error),
            "fw_error": layout.decode(buffer[: layout.size].tobytes())["error"],
        }
    return {"hex": buffer[data_at : data_at + size].tobytes().hex()}


# Files


def platform_status() -> Json:
    """SEV_PLATFORM_STATUS, as :func:`issue` answers.

    :raises OSError: /dev/sev cannot be opened.
    """
    descriptor = os.open("/dev/sev", os.O_RDWR | os.O_CLOEXEC)
    try:
        return issue(descriptor, sev.SevIssue.SEV_PLATFORM_STATUS, sev.SEV_USER_DATA_STATUS.size)
    finally:
        os.close(descriptor)


def _vmm(program: str | None) -> Json:
    if not program:
        return {"path": None, "error": "no VMM named"}
    path = shutil.which(program)
    if path is None:
        return {"path": program, "errno": "ENOENT", "error": f"not in PATH={os.environ.get('PATH', '')}"}
    facts: Json = {"path": path, "resolved": os.path.realpath(path)}
    try:
        facts["sha256"] = images.regular(facts["resolved"])["sha256"]
        facts["version_line"] = _version_line(path)
    except OSError as error:
        facts.update(_failure(error))
    except subprocess.TimeoutExpired:
        facts["error"] = f"{path} --version did not end within {VERSION_TIMEOUT_S:g} s"
    return facts


def _version_line(path: str) -> str:
    with (
        tempfile.TemporaryFile() as output
    ):  # a file: a program that never stops talking cannot fill our memory
        process = subprocess.Popen(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(VERSION_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            raise
        output.seek(0)
        lines = output.read(4096).decode("utf-8", "replace").strip().splitlines()
    if status != 0 or not lines:
        raise OSError(errno.ENOEXEC, f"{path} --version ended with {status}: {' '.join(lines)[:500]!r}")
    return lines[0]
