# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ways to a SEV-ES guest, as steps of direct calls up to each state of its launch."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_seves.spec import kvm
from pytest_seves.spec.sev import MEASUREMENT_SIZE, Policy, SevCmd

from .calls import At, Step, create_vcpu, create_vm, memory, needed, open_kvm, open_sev, sev

POLICY = int(Policy.NODBG | Policy.ES)


@dataclass(frozen=True)
class InitPath:
    """One of the two ways to make a VM a SEV-ES guest."""

    name: str
    vm_type: int
    command: SevCmd

    def initialised(self) -> tuple[Step, ...]:
        """Both devices open, and an initialised VM."""
        vm = create_vm(self.vm_type)
        return needed(open_kvm(), open_sev(), vm, sev(self.command))

    def started(self) -> tuple[Step, ...]:
        """The same with one vCPU and a context in the firmware: LAUNCH_UPDATE is next."""
        start = sev(SevCmd.KVM_SEV_LAUNCH_START, policy=POLICY)
        return needed(self.initialised(), create_vcpu(0), start)

    def protected(self) -> tuple[Step, ...]:
        """The same after LAUNCH_UPDATE_VMSA: the register state is encrypted."""
        return needed(self.started(), sev(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA))

    def measured(self) -> tuple[Step, ...]:
        """The same after LAUNCH_MEASURE: the guest waits for secrets."""
        return needed(self.protected(), measure())

    def launched(self) -> tuple[Step, ...]:
        """The same after LAUNCH_FINISH: the guest may run."""
        return needed(self.measured(), sev(SevCmd.KVM_SEV_LAUNCH_FINISH))


ES_INIT = InitPath("ES_INIT", kvm.KVM_X86_DEFAULT_VM, SevCmd.KVM_SEV_ES_INIT)
INIT2 = InitPath("INIT2", kvm.KVM_X86_SEV_ES_VM, SevCmd.KVM_SEV_INIT2)
INIT_PATHS = (ES_INIT, INIT2)


def measure(name: str = "measurement") -> tuple[Step, ...]:
    """LAUNCH_MEASURE into a page of its own."""
    at = At(name)
    return memory(name), sev(SevCmd.KVM_SEV_LAUNCH_MEASURE, uaddr=at, len=MEASUREMENT_SIZE)
