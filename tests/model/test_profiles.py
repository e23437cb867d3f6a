# SPDX-License-Identifier: GPL-2.0-or-later
"""Host profiles and their settings."""

from __future__ import annotations

import struct
from dataclasses import fields

import pytest

from pytest_seves.model.host import ModelHost
from pytest_seves.model.profiles import NAMES, Profile, UnknownProfile, resolve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linux-2.4", "no model profile 'linux-2.4'; there is: linux-6.1, linux-6.12, linux-6.18, linux-7.2"),
        ("linux-6.1:sev_se=N", "has no setting 'sev_se'"),
        ("linux-6.1:sev_es", "wanted setting=number"),
    ],
)
def test_unknown_profile_or_setting_is_refused(text: str, message: str) -> None:
    """A misspelt profile names what there is, before any process starts."""
    with pytest.raises(UnknownProfile, match=message):
        ModelHost.start(text)


@pytest.mark.parametrize("setting", ["sev=N", "sev_es=N", "es_asids=0"])
def test_host_without_es(setting: str) -> None:
    """Each of these takes SEV-ES away."""
    assert not resolve(f"linux-6.1:{setting}").es_usable


def test_cpuid_follows_the_asid_counts() -> None:
    """Leaf 0x8000001F: ECX is the highest ASID, EDX the lowest for SEV."""
    leaf = resolve("linux-6.1:es_asids=4,sev_asids=6").host_leaf(0x8000001F, 0)
    assert leaf[2:] == (10, 5)


@pytest.mark.parametrize("name", ["linux-6.12", "linux-6.18", "linux-7.2"])
def test_profiles_differ_in_their_kernel_only(name: str) -> None:
    """CPU, firmware and ASIDs are those of linux-6.1: a changed verdict is the kernel's doing."""
    old, new = resolve("linux-6.1"), resolve(name)
    assert new.release.startswith(name.removeprefix("linux-") + ".")
    assert (new.host_cpuid, new.microcode) == (old.host_cpuid, old.microcode)
    assert new.firmware_config() == old.firmware_config()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("leaf", [0, 0x80000000])
def test_the_vendor_reads_as_amd_writes_it(name: str, leaf: int) -> None:
    """EBX, EDX, ECX, in this order (APM volume 3, E.3.1)."""
    _, ebx, ecx, edx = resolve(name).host_leaf(leaf, 0)
    assert struct.pack("<3I", ebx, edx, ecx) == b"AuthenticAMD"


@pytest.mark.parametrize(("setting", "types"), [("sev=N", 0b1), ("sev_es=N", 0b101), ("es_asids=0", 0b101)])
def test_vm_types_follow_what_is_usable(setting: str, types: int) -> None:
    """KVM offers no type of VM that it cannot start."""
    assert resolve(f"linux-6.12:{setting}").vm_types == types


@pytest.mark.parametrize(("name", "types"), [("linux-6.18", 0b1101), ("linux-7.2", 0b1001)])
def test_vm_type_without_asids(name: str, types: int) -> None:
    """Only the newest kernel looks at the range of ASIDs before it offers the SEV type."""
    assert resolve(f"{name}:sev_asids=0").vm_types == types


@pytest.mark.parametrize("setting", ["debug_swap=N", "sev_es=N"])
def test_debug_swap_needs_its_parameter_and_es(setting: str) -> None:
    """KVM_X86_SEV_VMSA_FEATURES is empty without either."""
    assert resolve("linux-6.12").vmsa_features == 1 << 5
    assert resolve(f"linux-6.12:{setting}").vmsa_features == 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("linux-6.1", set()),
        ("linux-6.12", {"sev_snp", "debug_swap"}),
        ("linux-6.18", {"sev_snp", "debug_swap", "ciphertext_hiding_asids"}),
        ("linux-7.2", {"sev_snp", "ciphertext_hiding_asids"}),
    ],
)
def test_module_parameters_come_and_go(name: str, parameters: set[str]) -> None:
    """kvm_amd's parameters of SEV beyond `sev` and `sev_es`."""
    new = {"sev_snp", "debug_swap", "ciphertext_hiding_asids"}
    assert new & resolve(name).kvm_amd.keys() == parameters


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_kernel_is_wrong_by_itself(name: str) -> None:
    """What makes a kernel wrong on purpose is off in every profile, and can be switched on."""
    wrong = [item.name for item in fields(Profile) if item.name.startswith("wrong_")]
    assert wrong
    assert [setting for setting in wrong if getattr(resolve(name), setting)] == []
    assert all(getattr(resolve(f"{name}:{setting}=Y"), setting) for setting in wrong)
