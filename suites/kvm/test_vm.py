# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM: what a SEV-ES VM says of itself, takes, and gives back."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from pytest_seves.guest.calls import (
    At,
    asids_in_use,
    check_extension,
    close,
    ioctl,
    memory,
    needed,
    open_sev,
    platform_status,
    structure,
)
from pytest_seves.guest.init_path import INIT2, InitPath
from pytest_seves.spec.kvm import (
    KVM_CAP_READONLY_MEM,
    KVM_CAP_SYNC_REGS,
    KVM_CAP_X86_SMM,
    KVM_MEM_READONLY,
    KVM_SET_GUEST_DEBUG,
    KVM_SET_USER_MEMORY_REGION,
)
from pytest_seves.spec.sev import SEV_USER_DATA_STATUS

if TYPE_CHECKING:
    from pytest_seves.fixtures import Kvm

#: More guests than others start on the host while one program runs.
CYCLES = 16
ORDERS = list(permutations(("kvm", "sev", "vm", "vcpu")))


@pytest.mark.requirement("KVM-7")
def test_no_guest_debug(kvm: Kvm, es_path: InitPath) -> None:
    """KVM_SET_GUEST_DEBUG of a protected vCPU is refused with EINVAL."""
    vm = kvm(es_path.protected(), structure(KVM_SET_GUEST_DEBUG))
    assert vm[-1].errno == "EINVAL"


@pytest.mark.requirement("KVM-9")
def test_no_smm(kvm: Kvm, es_path: InitPath) -> None:
    """KVM_CAP_X86_SMM is 0 on a VM that is initialised as SEV-ES."""
    vm = kvm(es_path.initialised(), check_extension(KVM_CAP_X86_SMM))
    assert vm[-1].result == 0


@pytest.mark.requirement("KVM-20")
def test_no_sync_regs(kvm: Kvm) -> None:
    """KVM_CAP_SYNC_REGS is 0 on a VM of type KVM_X86_SEV_ES_VM: no register passes through kvm_run."""
    kvm.require(INIT2)
    vm = kvm(INIT2.initialised(), check_extension(KVM_CAP_SYNC_REGS))
    assert vm[-1].result == 0


@pytest.mark.requirement("KVM-11")
def test_read_only_memory(kvm: Kvm, es_path: InitPath) -> None:
    """A read-only memory slot is taken if KVM_CAP_READONLY_MEM of the VM says so, else EINVAL."""
    region = {"flags": KVM_MEM_READONLY, "memory_size": 4096, "userspace_addr": At("page")}
    *_, capability, slot = kvm(
        es_path.initialised(),
        needed(memory("page")),
        check_extension(KVM_CAP_READONLY_MEM),
        ioctl(KVM_SET_USER_MEMORY_REGION, "vm", region),
    )
    assert slot.errno == (None if capability.result else "EINVAL")


@pytest.mark.requirement("KVM-13")
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_closing_gives_the_asid_back(kvm: Kvm, es_path: InitPath, order: tuple[str, ...]) -> None:
    """In whatever order a guest's descriptors are closed, its ASID and firmware context are given back."""
    guest = (es_path.started(), needed(close(name) for name in order))
    count = (asids_in_use(), platform_status("witness"))
    vm = kvm(needed(open_sev("witness"), count, [guest] * CYCLES, count))
    before, after = (answer.decode(SEV_USER_DATA_STATUS)["guest_count"] for answer in (vm[2], vm[-1]))
    assert vm[-2].units("sev_es") - vm[1].units("sev_es") < CYCLES
    assert after - before < CYCLES
