# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness rows of a launch: VMM, guest firmware, limits of the user, and what the lab file expects."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_seves.host import guest_kernel
from pytest_seves.host.facts import HostFacts
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.readiness_table import Row
from pytest_seves.measurement.firmware_table import es_capable

_LEAST_QEMU = (6, 0)
_LEAST_PYTHON = (3, 9)
_GUEST_MIB = 512
_FIRMWARE_MIB = 16
_SKEW_S = 5.0


def rows(facts: HostFacts, host: LabHost) -> Iterator[Row]:
    """All rows of this group."""
    yield _vmm(facts, host)
    yield _image(facts, host)
    yield _image_hash(facts, host)
    yield from guest_kernel.rows(facts.guest_kernel, host.guest)
    yield _memlock(facts, host)
    yield _python(facts, host)
    yield _clock(facts)
    yield Row("kernel", "kernel", "ok" if facts.kernel else "unknown", facts.kernel or "not told")
    yield from _expected(facts, host)


def _vmm(facts: HostFacts, host: LabHost) -> Row:
    row, name, vmm = "vmm", f"VMM ({host.vmm.name})", facts.vmm
    if vmm.resolved is None:
        advice = f"install it, or set [vmm] binary in the lab file to its path (now: {host.vmm.binary})"
        return Row(row, name, "fail", f"{vmm.path or host.vmm.binary}: {vmm.error or 'not told'}", advice)
    value = f"{vmm.line or vmm.error or 'no version told'} ({vmm.resolved})"
    if vmm.line is None:
        advice = f"it does not run: try '{vmm.path} --version' on the host as the same user"
        return Row(row, name, "fail", value, advice)
    if not vmm.version:
        return Row(row, name, "unknown", value, "no version number in the first line of --version")
    if vmm.version < _LEAST_QEMU:
        return Row(row, name, "fail", value, "QEMU launches SEV-ES guests from 6.0 on")
    return Row(row, name, "ok", value)


def _image(facts: HostFacts, host: LabHost) -> Row:
    row, name, image = "guest-firmware", "guest firmware", facts.firmware
    path = image.path or host.firmware.path or "none named"
    if image.table is None:
        told = image.error or "not told"
        value = told if path in told else f"{path}: {told}"
        if image.path is None:
            return Row(row, name, "unknown", value, "set [firmware] path in the lab file")
        advice = (
            "install an OVMF, or set [firmware] path to one; a self-contradicting table is a damaged file"
        )
        return Row(row, name, "fail", value, advice)
    verdict = es_capable(image.table)
    value = f"{path}, {image.table.size} bytes: {verdict.reason}"
    if not verdict.capable:
        advice = (
            "name an OVMF whose SEC is 64 bit and that publishes the SEV-ES reset block; Debian 12:"
            " /usr/share/OVMF/OVMF_CODE.fd or /usr/share/ovmf/OVMF.fd, not OVMF_CODE_4M.fd"
        )
        return Row(row, name, "fail", value, advice)
    if not verdict.sure:
        return Row(row, name, "warn", value, "the image alone does not tell whether it boots; a launch will")
    if "secboot" in path.rpartition("/")[2]:
        advice = "by its name a build that needs SMM, which no SEV-ES guest has: take the one without secboot"
        return Row(row, name, "warn", value, advice)
    return Row(row, name, "ok", value)


def _image_hash(facts: HostFacts, host: LabHost) -> Row:
    row, name, pinned, found = (
        "guest-firmware-hash",
        "guest firmware hash",
        host.firmware.sha256,
        facts.firmware.sha256,
    )
    if found is None:
        return Row(row, name, "unknown", "not read", "see the row above")
    if pinned is None:
        return Row(row, name, "ok", f"{found} (not pinned)")
    if pinned != found:
        advice = (
            f"the lab file pins {pinned}. The image was replaced, by an update or by someone: find out, then"
            " pin the new one; launch digests change with it"
        )
        return Row(row, name, "fail", found, advice)
    return Row(row, name, "ok", f"{found} (as pinned)")


def _memlock(facts: HostFacts, host: LabHost) -> Row:
    """KVM pins all memory of a SEV guest and counts it against RLIMIT_MEMLOCK, CAP_IPC_LOCK aside."""
    row, name, need = "memlock", "memlock", _GUEST_MIB + _FIRMWARE_MIB
    if not facts.memlock_known:
        return Row(row, name, "unknown", "not told", "a launch will tell")
    value = "unlimited" if facts.memlock is None else f"{facts.memlock >> 20} MiB"
    value += f"; a guest of {_GUEST_MIB} MiB needs {need} MiB"
    if host.model is not None:
        return Row(row, name, "ok", f"{value}; the model pins nothing")
    if facts.ipc_lock:
        return Row(row, name, "ok", f"{value}; CAP_IPC_LOCK is held, no limit counts")
    if facts.memlock is not None and facts.memlock < need << 20:
        user = facts.user or "the user"
        advice = (
            "guest memory is pinned and counted, so the launch would end with ENOMEM. As root: echo"
            f" '{user} - memlock unlimited' > /etc/security/limits.d/sev.conf; it counts from the next login"
        )
        return Row(row, name, "fail", value, advice)
    return Row(row, name, "ok", value)


def _python(facts: HostFacts, host: LabHost) -> Row:
    row, name = "python", f"Python ({host.python})"
    value = ".".join(map(str, facts.python)) or "not told"
    if not facts.python:
        return Row(row, name, "unknown", value)
    if facts.python < _LEAST_PYTHON:
        advice = "the agent needs 3.9 or newer: set python in [host] to one that is"
        return Row(row, name, "fail", value, advice)
    return Row(row, name, "ok", value)


def _clock(facts: HostFacts) -> Row:
    row, name = "clock", "clock"
    if facts.clock_skew_s is None:
        return Row(row, name, "unknown", "not compared")
    value = f"{facts.clock_skew_s:+.1f} s against this machine"
    if abs(facts.clock_skew_s) > _SKEW_S:
        return Row(
            row, name, "warn", value, "set the clock (chrony): times in evidence will not match other logs"
        )
    return Row(row, name, "ok", value)


def _expected(facts: HostFacts, host: LabHost) -> Iterator[Row]:
    """What [expect] of the lab file says beyond the defaults, and whether it holds."""
    expect, platform = host.expect, facts.platform
    asids = facts.es_asids if facts.es_capacity is None else facts.es_capacity
    if expect.sev_es:
        held = None if asids is None else asids >= expect.min_es_asids
        yield _expectation("min_es_asids", str(expect.min_es_asids), asids, held)
    if expect.cpu is not None:
        held = None if facts.cpu is None else expect.cpu.casefold() in facts.cpu.casefold()
        yield _expectation("cpu", expect.cpu, facts.cpu, held)
    if expect.cbitpos is not None:
        held = None if facts.cbitpos is None else facts.cbitpos == expect.cbitpos
        yield _expectation("cbitpos", str(expect.cbitpos), facts.cbitpos, held)
    if expect.min_api is not None:
        api = None if platform is None else (platform.api_major, platform.api_minor)
        yield _expectation(
            "min_api", _dotted(expect.min_api), api and _dotted(api), api and api >= expect.min_api
        )
    if expect.min_build is not None:
        build = None if platform is None else platform.build
        held = None if build is None else build >= expect.min_build
        yield _expectation("min_build", str(expect.min_build), build, held)
    if expect.min_vmm is not None:
        version = facts.vmm.version or None
        held = None if version is None else version >= expect.min_vmm
        yield _expectation("min_vmm", _dotted(expect.min_vmm), version and _dotted(version), held)


def _expectation(key: str, wanted: str, got: object, held: bool | None) -> Row:
    row, name = f"expect-{key.replace('_', '-')}", f"expected: {key}"
    if held is None:
        return Row(row, name, "unknown", f"wanted {wanted}; got nothing", "the host did not tell")
    value = f"wanted {wanted}; got {got}"
    if held:
        return Row(row, name, "ok", value)
    return Row(
        row,
        name,
        "fail",
        value,
        f"the host is not what [expect] {key} of the lab file says: correct one of them",
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
