# SPDX-License-Identifier: GPL-2.0-or-later
"""The /dev/kvm descriptor: Linux 6.1 virt/kvm/kvm_main.c kvm_dev_ioctl() and x86.c kvm_arch_dev_ioctl()."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ..spec import kvm
from .kvm_vm import Vm
from .memory import Refusal, TargetMemory
from .profiles import CpuidEntry

if TYPE_CHECKING:
    from .supervisor import Call, GuestSupervisor

_MCE_CAPABILITIES = 0x0100_010A  # 10 banks, MCG_CTL_P, SER_P: kvm_mce_cap_supported
MMAP_SIZE = 3 * 4096  # kvm_run, port I/O data, coalesced MMIO ring
_DEVICE_ATTRIBUTE = struct.Struct("<IIQQ")  # flags, group, attr, addr
_XCOMP_GUEST_SUPP = (0, 0)
_VMSA_FEATURES = (kvm.KVM_X86_GRP_SEV, kvm.KVM_X86_SEV_VMSA_FEATURES)
_SUPPORTED_XCR0 = 0x207  # x87, SSE, AVX, PKRU
_CPUID_ENTRY = struct.Struct("<10I")


def answer_list(memory: TargetMemory, address: int, values: Sequence[int]) -> int:
    """kvm_msr_list: the count is always told, the list only if it fits."""
    (room,) = struct.unpack("<I", memory.read(address, 4))
    memory.write(address, struct.pack("<I", len(values)))
    if room < len(values):
        return -errno.E2BIG
    memory.write(address + 4, struct.pack(f"<{len(values)}I", *values))
    return 0


class SystemDevice:
    """An open /dev/kvm."""

    requests: ClassVar[Mapping[int, Callable[..., int | None]]]
    unknown_errno: ClassVar[int] = errno.EINVAL

    def __init__(self, supervisor: GuestSupervisor) -> None:
        self._supervisor = supervisor

    def closed(self) -> None:
        """VMs outlive the descriptor they were created from."""

    def api_version(self, call: Call) -> int:
        """KVM_GET_API_VERSION."""
        return kvm.KVM_API_VERSION if call.argument == 0 else -errno.EINVAL

    def create_vm(self, call: Call) -> None:
        """KVM_CREATE_VM. Types other than the default one need a bit in KVM_CAP_VM_TYPES."""
        profile = self._supervisor.profile
        types = profile.vm_types & ~(profile.wrong_vm_type_refused << kvm.KVM_X86_SEV_ES_VM)
        if call.argument > 31 or not types >> call.argument & 1:
            raise Refusal(errno.EINVAL)
        self._supervisor.grant(call.identifier, Vm(self._supervisor, call.argument))

    def check_extension(self, call: Call) -> int:
        """KVM_CHECK_EXTENSION, for the system as a whole."""
        return self._supervisor.profile.capability(call.argument)

    def mmap_size(self, call: Call) -> int:
        """KVM_GET_VCPU_MMAP_SIZE."""
        return MMAP_SIZE if call.argument == 0 else -errno.EINVAL

    def msr_index_list(self, call: Call) -> int:
        """KVM_GET_MSR_INDEX_LIST."""
        return answer_list(self._supervisor.memory, call.argument, self._supervisor.profile.msr_index_list)

    def msr_feature_index_list(self, call: Call) -> int:
        """KVM_GET_MSR_FEATURE_INDEX_LIST."""
        return answer_list(
            self._supervisor.memory, call.argument, list(self._supervisor.profile.msr_features)
        )

    def get_msrs(self, call: Call) -> int:
        """KVM_GET_MSRS of feature MSRs: the number of entries read, up to the first unknown."""
        memory, features = self._supervisor.memory, self._supervisor.profile.msr_features
        count: int = struct.unpack("<I", memory.read(call.argument, 4))[0]
        for number in range(count):
            address = call.argument + kvm.MSRS.size + number * kvm.MSR_ENTRY.size
            (index,) = struct.unpack("<I", memory.read(address, 4))
            if index not in features:
                return number
            memory.write(address + 8, struct.pack("<Q", features[index]))
        return count

    def supported_cpuid(self, call: Call) -> int:
        """KVM_GET_SUPPORTED_CPUID."""
        return self._answer_cpuid(
            call, [self._leaf(entry) for entry in self._supervisor.profile.supported_cpuid]
        )

    def emulated_cpuid(self, call: Call) -> int:
        """KVM_GET_EMULATED_CPUID."""
        return self._answer_cpuid(
            call, [CpuidEntry(0, 0, 0, 1, 0, 0, 0), CpuidEntry(1, 0, 0, 0, 0, 1 << 22, 0)]
        )

    def mce_capabilities(self, call: Call) -> int:
        """KVM_X86_GET_MCE_CAP_SUPPORTED."""
        self._supervisor.memory.write(call.argument, struct.pack("<Q", _MCE_CAPABILITIES))
        return 0

    def has_device_attribute(self, call: Call) -> int:
        """KVM_HAS_DEVICE_ATTR: the guest's XSAVE components; the SEV group came with Linux 6.10."""
        group, attribute, _ = self._attribute(call)
        return 0 if (group, attribute) in self._attributes else -errno.ENXIO

    def get_device_attribute(self, call: Call) -> int:
        """KVM_GET_DEVICE_ATTR."""
        group, attribute, address = self._attribute(call)
        value = self._attributes.get((group, attribute))
        if value is None:
            return -errno.ENXIO
        self._supervisor.memory.write(address, struct.pack("<Q", value))
        return 0

    @property
    def _attributes(self) -> dict[tuple[int, int], int]:
        profile = self._supervisor.profile
        features = {_VMSA_FEATURES: profile.vmsa_features} if profile.init2 else {}
        return {_XCOMP_GUEST_SUPP: _SUPPORTED_XCR0, **features}

    def _attribute(self, call: Call) -> tuple[int, int, int]:
        raw = self._supervisor.memory.read(call.argument, _DEVICE_ATTRIBUTE.size)
        _, group, attribute, address = _DEVICE_ATTRIBUTE.unpack(raw)
        return group, attribute, address

    def _leaf(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 0x8000001F follows what kvm_amd offers; its "reduced bits" are always 0 (svm/sev.c, 5.18)."""
        if entry.function != 0x8000001F:
            return entry
        profile = self._supervisor.profile
        eax = entry.eax & ~(0 if profile.es_usable else 1 << 3)
        if not profile.sev_usable:
            return CpuidEntry(entry.function, 0, 0, 0, 0, 0, 0)
        values = (
            eax,
            profile.encryption_ebx & 0x3F,
            profile.es_asids + profile.sev_asids,
            profile.es_asids + 1,
        )
        return CpuidEntry(entry.function, 0, 0, *values)

    def _answer_cpuid(self, call: Call, entries: Sequence[CpuidEntry]) -> int:
        memory = self._supervisor.memory
        (room,) = struct.unpack("<I", memory.read(call.argument, 4))
        if room < len(entries):
            return -errno.E2BIG
        packed = b"".join(
            _CPUID_ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, 0, 0, 0)
            for e in entries
        )
        memory.write(call.argument, struct.pack("<II", len(entries), 0) + packed)
        return 0


SystemDevice.requests = {
    kvm.KVM_GET_API_VERSION: SystemDevice.api_version,
    kvm.KVM_CREATE_VM: SystemDevice.create_vm,
    kvm.KVM_CHECK_EXTENSION: SystemDevice.check_extension,
    kvm.KVM_GET_VCPU_MMAP_SIZE: SystemDevice.mmap_size,
    kvm.KVM_GET_MSR_INDEX_LIST: SystemDevice.msr_index_list,
    kvm.KVM_GET_MSR_FEATURE_INDEX_LIST: SystemDevice.msr_feature_index_list,
    kvm.KVM_GET_MSRS: SystemDevice.get_msrs,
    kvm.KVM_GET_SUPPORTED_CPUID: SystemDevice.supported_cpuid,
    kvm.KVM_GET_EMULATED_CPUID: SystemDevice.emulated_cpuid,
    kvm.KVM_X86_GET_MCE_CAP_SUPPORTED: SystemDevice.mce_capabilities,
    kvm.KVM_HAS_DEVICE_ATTR: SystemDevice.has_device_attribute,
    kvm.KVM_GET_DEVICE_ATTR: SystemDevice.get_device_attribute,
}
