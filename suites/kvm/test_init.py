# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM: what the init commands accept, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.calls import (
    check_extension,
    create_vcpu,
    create_vm,
    device_attribute,
    ioctl,
    needed,
    open_kvm,
    peek,
    sev,
)
from pytest_seves.guest.init_path import INIT2, InitPath
from pytest_seves.spec.kvm import (
    KVM_CAP_VM_TYPES,
    KVM_MEMORY_ENCRYPT_OP,
    KVM_X86_DEFAULT_VM,
    KVM_X86_GRP_SEV,
    KVM_X86_SEV_ES_VM,
    KVM_X86_SEV_VMSA_FEATURES,
)
from pytest_seves.spec.sev import SevCmd

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm

ES_INIT = SevCmd.KVM_SEV_ES_INIT
NO_SUCH_VERSION = 0xFFFF


@pytest.mark.requirement("KVM-1")
def test_init_after_a_vcpu(kvm: Kvm, es_path: InitPath) -> None:
    """An init command is refused with EINVAL once the VM has a vCPU."""
    vm = kvm(needed(open_kvm(), create_vm(es_path.vm_type), create_vcpu(0)), sev(es_path.command))
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-14")
def test_init_twice(kvm: Kvm, es_path: InitPath) -> None:
    """An init command is refused with EBUSY (before 6.10) or EINVAL on a VM that is initialised."""
    vm = kvm(es_path.initialised(), sev(es_path.command))
    assert vm[-1].errno in ("EBUSY", "EINVAL")


@pytest.mark.requirement("KVM-15")
def test_es_init_of_another_type(kvm: Kvm) -> None:
    """KVM_SEV_ES_INIT is refused with EINVAL on a VM of type KVM_X86_SEV_ES_VM."""
    kvm.require(INIT2)
    vm = kvm(needed(open_kvm(), create_vm(KVM_X86_SEV_ES_VM)), sev(ES_INIT))
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-18")
def test_init2_of_the_default_type(kvm: Kvm) -> None:
    """KVM_SEV_INIT2 is refused with EINVAL on a VM of the default type."""
    vm = kvm(needed(open_kvm(), create_vm(KVM_X86_DEFAULT_VM)), sev(SevCmd.KVM_SEV_INIT2))
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-2")
@pytest.mark.parametrize("flags", [1, 1 << 31], ids=hex)
def test_init2_flags(kvm: Kvm, flags: int) -> None:
    """KVM_SEV_INIT2 refuses flags with EINVAL: none is defined."""
    kvm.require(INIT2)
    vm = kvm(needed(open_kvm(), create_vm(KVM_X86_SEV_ES_VM)), sev(SevCmd.KVM_SEV_INIT2, flags=flags))
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-16")
@pytest.mark.parametrize("bit", [0, 5, 63])
def test_init2_features(kvm: Kvm, bit: int) -> None:
    """KVM_SEV_INIT2 takes a VMSA feature if KVM_X86_SEV_VMSA_FEATURES offers it, and else answers EINVAL."""
    kvm.require(INIT2)
    vm = kvm(
        needed(open_kvm(), device_attribute(KVM_X86_GRP_SEV, KVM_X86_SEV_VMSA_FEATURES, "offered")),
        needed(peek("offered", 8), create_vm(KVM_X86_SEV_ES_VM)),
        sev(SevCmd.KVM_SEV_INIT2, vmsa_features=1 << bit),
    )
    *_, offered, _, init = vm
    assert init.errno == (None if int.from_bytes(offered.out, "little") >> bit & 1 else "EINVAL")


@pytest.mark.requirement("KVM-17")
def test_init2_ghcb_version(kvm: Kvm) -> None:
    """KVM_SEV_INIT2 refuses a version of the GHCB protocol that does not exist with EINVAL."""
    kvm.require(INIT2)
    init = sev(SevCmd.KVM_SEV_INIT2, ghcb_version=NO_SUCH_VERSION)
    vm = kvm(needed(open_kvm(), create_vm(KVM_X86_SEV_ES_VM)), init)
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-8")
def test_the_type_is_offered_if_it_works(kvm: Kvm) -> None:
    """KVM_CAP_VM_TYPES has the bit of KVM_X86_SEV_ES_VM if and only if such a VM can be initialised."""
    _, types, *attempt = kvm(
        needed(open_kvm()),
        check_extension(KVM_CAP_VM_TYPES, on="kvm"),
        needed(create_vm(KVM_X86_SEV_ES_VM)),
        sev(SevCmd.KVM_SEV_INIT2),
    ).given
    works = attempt[-1].errno in (None, "EBUSY")  # EBUSY: no ASID is free just now
    assert works == bool(types.result >> KVM_X86_SEV_ES_VM & 1)


@pytest.mark.requirement("KVM-10")
def test_null_probe(kvm: Kvm) -> None:
    """KVM_MEMORY_ENCRYPT_OP with a NULL pointer succeeds where SEV is enabled: it is the probe for it."""
    vm = kvm(needed(open_kvm(), create_vm(KVM_X86_DEFAULT_VM)), ioctl(KVM_MEMORY_ENCRYPT_OP, "vm", 0))
    assert vm[-1].ok
