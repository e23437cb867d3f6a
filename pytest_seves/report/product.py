# SPDX-License-Identifier: GPL-2.0-or-later
"""What was qualified: parts of a host by name, version and hash. What nobody told is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_seves.host.facts import HostFacts

#: One line of the table; `value` is None for what is not known, `sha256` where a file was hashed.
Row = dict[str, str | None]
NOT_TOLD = "the host did not tell its facts"


def rows(facts: HostFacts | None, raw: Mapping[str, Any]) -> list[Row]:
    """The table, always with the same lines.

    :param raw: the agent's answer, as far as the facts do not decode it.
    """
    if facts is None:
        names = ("System", "CPU", "Microcode", "BIOS", "SEV firmware", "SNP firmware", "Kernel", "VMM")
        return [_row(name, None, note=NOT_TOLD) for name in (*names, "Firmware image")]
    uname = raw.get("uname")
    build = uname.get("version") if isinstance(uname, dict) else None
    vmm, image = facts.vmm, facts.firmware
    return [
        _row("System", _joined(facts.dmi, "sys_vendor", "product_name", "board_name")),
        _row("CPU", _cpu(facts)),
        _row("Microcode", facts.microcode),
        _row("BIOS", _joined(facts.dmi, "bios_vendor", "bios_version", "bios_date")),
        _row("SEV firmware", _sev(facts), note=facts.platform_error or ""),
        _row("SNP firmware", _snp(facts), note="" if facts.snp_platform else "no SNP_PLATFORM_STATUS"),
        _row(
            "Kernel",
            facts.kernel and " ".join(filter(None, [facts.kernel, str(build or "")])),
            **_build_id(facts),
        ),
        _row("KVM", _parameters(facts)),
        _row("VMM", vmm.line or vmm.path, sha256=vmm.sha256, note=vmm.error or vmm.resolved or ""),
        _row("Firmware image", image.path, sha256=image.sha256, note=image.error or f"{image.size} bytes"),
    ]


def _row(
    what: str, value: str | None, *, sha256: str | None = None, note: str = "", hash_kind: str = "SHA-256"
) -> Row:
    return {"what": what, "value": value or None, "hash_kind": hash_kind, "hash": sha256, "note": note}


def _joined(dmi: Mapping[str, str], *names: str) -> str | None:
    return " ".join(filter(None, (dmi.get(name) for name in names))) or None


def _cpu(facts: HostFacts) -> str | None:
    parts = (
        facts.vendor,
        facts.cpu,
        None if facts.signature is None else f"signature {facts.signature:#010x}",
    )
    return ", ".join(filter(None, parts)) or None


def _sev(facts: HostFacts) -> str | None:
    if facts.platform is None:
        return None
    told = facts.platform
    es = "initialised for SEV-ES" if told.es else "not initialised for SEV-ES"
    return f"API {told.api_major}.{told.api_minor} build {told.build}, {told.state_name}, {es}"


def _snp(facts: HostFacts) -> str | None:
    if facts.snp_platform is None:
        return None
    api = facts.snp_platform.api
    return f"API {api[0]}.{api[1]} build {facts.snp_platform.build}, TCB {facts.snp_platform.tcb.hex()}"


def _build_id(facts: HostFacts) -> dict[str, str]:
    return {"sha256": facts.kernel_build_id, "hash_kind": "build id"} if facts.kernel_build_id else {}


def _parameters(facts: HostFacts) -> str | None:
    found = [
        f"{module}.{name}={value}"
        for module in ("kvm_amd", "kvm")
        for name, value in facts.params.get(module, {}).items()
    ]
    return " ".join(found) or None
