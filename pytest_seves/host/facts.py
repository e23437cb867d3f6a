# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of a host, decoded from what its agent read. Pure: the same raw facts give the same answer, anywhere.

None means that the host did not tell; nothing here raises for what a host did or did not say.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_seves.errors import FirmwareImageError
from pytest_seves.measurement.firmware_table import FirmwareTable, parse
from pytest_seves.spec import sev
from pytest_seves.spec.layout import Layout

from .guest_kernel import KernelFacts, decode_kernel

Json = Mapping[str, Any]

_CAP_IPC_LOCK = 1 << 14


@dataclass(frozen=True)
class Device:
    """A device node: ``open`` is "ok" or the errno name; mode and group where it is closed to us."""

    open: str
    mode: str | None = None
    group: str | None = None
    api: int | None = None


@dataclass(frozen=True)
class Platform:
    """What the SEV firmware says of itself (PLATFORM_STATUS)."""

    api_major: int
    api_minor: int
    build: int
    state: int
    owned: bool
    es: bool
    guest_count: int
    raw: str

    @property
    def state_name(self) -> str:
        """The state in the document's words."""
        known = {state.value: state.name for state in sev.PlatformState}
        return known.get(self.state, f"unknown state {self.state}")


@dataclass(frozen=True)
class SnpPlatform:
    """SNP_PLATFORM_STATUS; ``tcb`` is the current TCB version, 8 bytes."""

    state: int
    api: tuple[int, int]
    build: int
    tcb: bytes
    raw: str


@dataclass(frozen=True)
class VmmFacts:
    """The VMM that would run; `version` is empty where its first line tells none."""

    path: str | None
    resolved: str | None
    sha256: str | None
    line: str | None
    version: tuple[int, ...]
    error: str | None


@dataclass(frozen=True)
class FirmwareFacts:
    """The guest firmware image; without `table` it could not be read or parsed, and `error` says why."""

    path: str | None
    size: int | None
    sha256: str | None
    table: FirmwareTable | None
    error: str | None


@dataclass(frozen=True)
class HostFacts:
    """All that is known of a host; see the field's source in ``agent/facts.py``."""

    kernel: str | None
    python: tuple[int, ...]
    user: str | None
    groups: tuple[str, ...]
    cpuid_source: str | None
    vendor: str | None
    cpu: str | None
    signature: int | None
    sev: bool | None
    sev_es: bool | None
    snp: bool | None
    cbitpos: int | None
    reduced_phys_bits: int
    max_asid: int | None
    min_sev_asid: int | None
    params: Mapping[str, Mapping[str, str]]
    devices: Mapping[str, Device]
    platform: Platform | None
    platform_error: str | None
    snp_platform: SnpPlatform | None
    vm_types: int | None
    vmsa_features: int | None
    es_capacity: int | None
    es_of_others: int | None
    memlock: int | None
    memlock_known: bool
    ipc_lock: bool
    microcode: str | None
    dmi: Mapping[str, str]
    kernel_build_id: str | None
    clock_skew_s: float | None
    vmm: VmmFacts
    firmware: FirmwareFacts
    guest_kernel: KernelFacts

    @property
    def es_asids(self) -> int | None:
        """ASIDs for SEV-ES guests by CPUID: 1 to min_sev_asid - 1."""
        return None if self.min_sev_asid is None else max(self.min_sev_asid - 1, 0)

    @property
    def free_es_asids(self) -> int | None:
        """SEV-ES guests that our runs may have at once; None where the kernel does not count them."""
        if self.es_capacity is None or self.es_of_others is None:
            return None
        return max(self.es_capacity - self.es_of_others, 0)

    @property
    def kernel_version(self) -> tuple[int, ...]:
        """The numbers in its release; for known defects alone: what a kernel can do is probed."""
        return _version(self.kernel or "")

    @property
    def family(self) -> int | None:
        """CPU family of the signature, base and extended."""
        if self.signature is None:
            return None
        base = self.signature >> 8 & 0xF
        return base + (self.signature >> 20 & 0xFF) if base == 0xF else base

    @property
    def snp_svn(self) -> int | None:
        """The security version of the SNP firmware. Zen 5 (family 0x1a) has its TCB in another order."""
        if self.snp_platform is None or self.family is None:
            return None
        return self.snp_platform.tcb[3 if self.family >= 0x1A else 6]

    @property
    def es_removed_by_firmware(self) -> bool:
        """AMD-SB-3023, CVE-2025-48514: the firmware refuses SEV-ES guests once SNP is initialised."""
        if self.snp_svn is None or self.snp_platform is None or self.snp_platform.state == 0:
            return False
        limit = {0x19: 0x1B, 0x1A: 0x04}.get(self.family or 0)
        return limit is not None and self.snp_svn >= limit


def decode_facts(raw: Json, *, now_ns: int | None = None) -> HostFacts:
    """Facts from the agent's answer.

    :param now_ns: the controller's wall clock when the answer came, for the clock skew.
    """
    leaves = _leaves(raw)
    encryption = leaves.get(sev.CPUID_ENCRYPTION)
    capacity, current = (_table(_table(raw, "misc"), key) for key in ("capacity", "current"))
    platform, platform_error = _platform(_table(raw, "platform_status"))
    memlock = raw.get("memlock")
    limits = [v for v in memlock if isinstance(v, int)] if isinstance(memlock, list) else []
    time_ns = _int(raw, "time_ns")
    return HostFacts(
        kernel=_text(_table(raw, "uname"), "release"),
        python=_version(_text(raw, "python") or ""),
        user=_text(raw, "user"),
        groups=tuple(g for g in _list(raw, "groups") if isinstance(g, str)),
        cpuid_source=_text(_table(raw, "cpuid"), "source"),
        vendor=_vendor(leaves),
        cpu=_cpu_name(leaves),
        signature=leaves[1][0] if 1 in leaves else None,
        **_encryption(encryption),
        params={m: _strings(_table(_table(raw, "params"), m)) for m in ("kvm_amd", "ccp", "kvm")},
        devices={name: _device(_table(_table(raw, "devices"), name)) for name in ("/dev/kvm", "/dev/sev")},
        platform=platform,
        platform_error=platform_error,
        snp_platform=_snp_platform(_table(raw, "snp_platform_status")),
        vm_types=_int(raw, "vm_types"),
        vmsa_features=_int(raw, "vmsa_features"),
        es_capacity=_int(capacity, "sev_es") if "sev_es" in capacity or not capacity else 0,
        es_of_others=_others(_int(current, "sev_es"), _int(raw, "es_asids_of_others")),
        memlock=limits[0] if limits and limits[0] >= 0 else None,
        memlock_known=bool(limits),
        ipc_lock=bool(_hex(_text(raw, "cap_eff")) & _CAP_IPC_LOCK),
        microcode=_text(raw, "microcode"),
        dmi=_strings(_table(raw, "dmi")),
        kernel_build_id=_text(raw, "kernel_build_id"),
        clock_skew_s=None if now_ns is None or time_ns is None else (time_ns - now_ns) / 1e9,
        vmm=_vmm(_table(raw, "vmm")),
        firmware=_firmware(_table(raw, "firmware")),
        guest_kernel=decode_kernel(_table(raw, "guest_kernel")),
    )


def _table(raw: Json, key: str) -> Json:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _list(raw: Json, key: str) -> list[Any]:
    value = raw.get(key)
    return value if isinstance(value, list) else []


def _text(raw: Json, key: str) -> str | None:
    value = raw.get(key)
    return value if isinstance(value, str) else None


def _int(raw: Json, key: str) -> int | None:
    value = raw.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _strings(raw: Json) -> dict[str, str]:
    return {key: value for key, value in raw.items() if isinstance(value, str)}


def _others(in_use: int | None, before: int | None) -> int | None:
    """ASIDs that strangers hold: those of before our runs had the host, fewer if fewer are in use now.

    Guests of our own make way for each other, and do not count.
    """
    return in_use if in_use is None or before is None else min(in_use, before)


def _hex(text: str | None) -> int:
    return int(text, 16) if text and re.fullmatch(r"[0-9a-fA-F]{1,32}", text) else 0


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"\d{1,9}(?:\.\d{1,9})+", text, re.ASCII)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _leaves(raw: Json) -> dict[int, tuple[int, int, int, int]]:
    """CPUID leaves that the CPU has. One above the greatest is answered too, with another leaf's values.

    A CPU that ends below the leaf of memory encryption has none: all zero, not unknown.
    """
    found: dict[int, tuple[int, int, int, int]] = {}
    for key, value in _table(_table(raw, "cpuid"), "leaves").items():
        if isinstance(value, list) and len(value) == 4 and all(_is_u32(v) for v in value):
            found[_hex(str(key).removeprefix("0x"))] = (value[0], value[1], value[2], value[3])
    greatest: dict[int, int] = {base: found[base][0] for base in (0, 0x80000000) if base in found}
    if greatest.get(0x80000000, sev.CPUID_ENCRYPTION) < sev.CPUID_ENCRYPTION:
        found[sev.CPUID_ENCRYPTION] = (0, 0, 0, 0)
        greatest[0x80000000] = sev.CPUID_ENCRYPTION
    return {leaf: regs for leaf, regs in found.items() if leaf <= greatest.get(leaf & 0x80000000, leaf)}


def _is_u32(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _vendor(leaves: Mapping[int, tuple[int, int, int, int]]) -> str | None:
    if 0 not in leaves:
        return None
    _, ebx, ecx, edx = leaves[0]
    return struct.pack("<3I", ebx, edx, ecx).decode("ascii", "replace")


def _cpu_name(leaves: Mapping[int, tuple[int, int, int, int]]) -> str | None:
    parts = [leaves.get(leaf) for leaf in (0x80000002, 0x80000003, 0x80000004)]
    raw = b"".join(struct.pack("<4I", *part) for part in parts if part)
    name = " ".join(raw.split(b"\0")[0].decode("ascii", "replace").split())
    return name or None


def _encryption(registers: tuple[int, int, int, int] | None) -> dict[str, Any]:
    """Leaf 0x8000001F (APM volume 3, E.4.17).

    A VMM must be told at least one reduced bit, even where CPUID says 0.
    """
    names = ("sev", "sev_es", "snp", "cbitpos", "max_asid", "min_sev_asid")
    if registers is None:
        return {**dict.fromkeys(names), "reduced_phys_bits": 1}
    eax, ebx, ecx, edx = registers
    bits = (bool(eax & bit) for bit in (sev.CPUID_SEV, sev.CPUID_SEV_ES, sev.CPUID_SEV_SNP))
    return {
        **dict(zip(names, (*bits, ebx & 0x3F, ecx, edx), strict=True)),
        "reduced_phys_bits": max(ebx >> 6 & 0x3F, 1),
    }


def _device(raw: Json) -> Device:
    text = {key: _text(raw, key) for key in ("mode", "group")}
    return Device(open=_text(raw, "open") or "unknown", api=_int(raw, "api"), **text)


def _status(raw: Json, layout: Layout) -> tuple[dict[str, Any] | None, str | None]:
    """Fields of a status structure, or why there are none."""
    text = _text(raw, "hex")
    if text is None:
        code = _int(raw, "fw_error")
        firmware = f", firmware status {sev.firmware_status_name(code)}" if code else ""
        return None, f"{_text(raw, 'errno') or 'not told'}{firmware}"
    try:
        return layout.decode(bytes.fromhex(text)), None
    except ValueError as error:
        return None, f"malformed: {error}"


def _platform(raw: Json) -> tuple[Platform | None, str | None]:
    fields, error = _status(raw, sev.SEV_USER_DATA_STATUS)
    if fields is None:
        return None, error
    flags = fields.pop("flags")
    return Platform(
        **fields,
        owned=bool(flags & sev.SEV_STATUS_FLAGS_OWNED),
        es=bool(flags & sev.SEV_STATUS_FLAGS_CONFIG_ES),
        raw=str(raw["hex"]),
    ), None


def _snp_platform(raw: Json) -> SnpPlatform | None:
    fields, _ = _status(raw, sev.SEV_USER_DATA_SNP_STATUS)
    if fields is None:
        return None
    return SnpPlatform(
        state=fields["state"],
        api=(fields["api_major"], fields["api_minor"]),
        build=fields["build_id"],
        tcb=fields["current_tcb"],
        raw=str(raw["hex"]),
    )


def _vmm(raw: Json) -> VmmFacts:
    line = _text(raw, "version_line")
    text = {key: _text(raw, key) for key in ("path", "resolved", "sha256", "error")}
    return VmmFacts(line=line, version=_version(line or ""), **text)


def _firmware(raw: Json) -> FirmwareFacts:
    path, size, sha256, error = (
        _text(raw, "path"),
        _int(raw, "size"),
        _text(raw, "sha256"),
        _text(raw, "error"),
    )
    table = None
    tail = _text(raw, "tail_b64")
    if tail is not None and size is not None:
        try:
            table = parse(base64.b64decode(tail, validate=True), size=size, where=path or "firmware")
        except (FirmwareImageError, binascii.Error, UnicodeError, ValueError) as problem:
            error = str(problem)
    elif error is None:
        error = "not told"
    return FirmwareFacts(path, size, sha256, table, error)
