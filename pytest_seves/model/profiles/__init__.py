# SPDX-License-Identifier: GPL-2.0-or-later
"""What one modelled host is: kernel release, its answers and behaviours, CPU, firmware, BIOS settings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ..firmware_config import FirmwareConfig

#: Profile name to the module that holds it.
NAMES = {"linux-6.1": "linux_6_1"}


class UnknownProfile(ValueError):
    """No profile, or no such setting of one."""


@dataclass(frozen=True)
class CpuidEntry:
    """One kvm_cpuid_entry2. `flags` bit 0: the index matters."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True)
class Profile:
    """A host. Everything that differs between kernels or machines is here, not in an ``if`` on a release.

    :param host_cpuid: (leaf, subleaf) to EAX, EBX, ECX, EDX as /dev/cpu/0/cpuid gives them; 0x8000001F is
        made from `encryption_ebx` and the ASID counts.
    :param encryption_ebx: EBX of CPUID 0x8000001F; the model sets it to what this machine's CPU answers.
    :param reinit_errno: a second KVM_SEV_ES_INIT on an active VM fails with this name.
    :param fpu_protected_at_creation: an ES vCPU's FPU state is out of reach from KVM_CREATE_VCPU on.
    :param vmsa_twice: a second LAUNCH_UPDATE_VMSA is passed on to the firmware.
    :param smi_on_es: KVM_SMI on an ES vCPU succeeds.
    :param memlock: pinning guest memory counts against RLIMIT_MEMLOCK (off: see README.md).
    """

    name: str
    release: str
    version: str
    microcode: str
    kvm_amd: Mapping[str, str]
    kvm: Mapping[str, str]
    ccp: Mapping[str, str]
    capabilities: Mapping[int, int]
    host_cpuid: Mapping[tuple[int, int], tuple[int, int, int, int]]
    encryption_eax: int
    supported_cpuid: tuple[CpuidEntry, ...]
    msr_index_list: tuple[int, ...]
    msr_features: Mapping[int, int]
    msr_ranges: tuple[tuple[int, int], ...]
    es_asids: int = 99
    sev_asids: int = 410
    sev: bool = True
    sev_es: bool = True
    platform_es: bool = True
    api_major: int = 1
    api_minor: int = 55
    build: int = 24
    encryption_ebx: int = 1 << 6
    tsc_khz: int = 2_450_000
    reinit_errno: str = "EBUSY"
    fpu_protected_at_creation: bool = True
    vmsa_twice: bool = True
    smi_on_es: bool = True
    memlock: bool = False

    @property
    def sev_usable(self) -> bool:
        """kvm_amd.sev as it reads after set-up."""
        return self.sev and self.sev_asids + self.es_asids > 0

    @property
    def es_usable(self) -> bool:
        """kvm_amd.sev_es as it reads after set-up: needs the parameter and ASIDs."""
        return self.sev_usable and self.sev_es and self.es_asids > 0

    @cached_property
    def _known_msrs(self) -> frozenset[int]:
        ranges = (range(first, last + 1) for first, last in self.msr_ranges)
        return frozenset(
            (*self.msr_index_list, *self.msr_features, *(n for numbers in ranges for n in numbers))
        )

    def knows_msr(self, number: int) -> bool:
        """Whether KVM emulates this register for guests."""
        return number in self._known_msrs

    def firmware_config(self) -> FirmwareConfig:
        """The firmware of this host."""
        return FirmwareConfig(
            self.api_major,
            self.api_minor,
            self.build,
            es=self.platform_es,
            es_asids=self.es_asids,
            asids=self.es_asids + self.sev_asids,
        )

    def host_leaf(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """CPUID of the host; zeros for a leaf that the profile does not know."""
        if leaf == 0x8000001F:
            return self.encryption_eax, self.encryption_ebx, self.es_asids + self.sev_asids, self.es_asids + 1
        return self.host_cpuid.get((leaf, subleaf), (0, 0, 0, 0))


def resolve(text: str, **overrides: Any) -> Profile:
    """The profile called `text`, which may carry settings: ``linux-6.1:sev_es=N,es_asids=2``.

    :raise UnknownProfile: names what there is.
    """
    name, _, settings = text.partition(":")
    if name not in NAMES:
        raise UnknownProfile(f"no model profile {name!r}; there is: {', '.join(sorted(NAMES))}")
    module = importlib.import_module(f".{NAMES[name]}", __name__)
    profile: Profile = module.PROFILE
    values = {**_settings(settings), **overrides}
    known = {item.name for item in fields(Profile)}
    for key in values:
        if key not in known:
            raise UnknownProfile(f"profile {name!r} has no setting {key!r}")
    return replace(profile, **values)


def _settings(text: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if value in ("Y", "N"):
            out[key] = value == "Y"
        elif equals and value.isdecimal():
            out[key] = int(value)
        else:
            raise UnknownProfile(f"wanted setting=number or setting=Y or =N, got {item!r}")
    return out
