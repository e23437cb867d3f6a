# SPDX-License-Identifier: GPL-2.0-or-later
"""What the descriptors of one VMM process are, learnt from the requests themselves.

KVM_CREATE_VM returns a VM, KVM_CREATE_VCPU on it returns a vCPU; who takes a system request is the KVM
device. So it does not matter what the kernel calls them. close(2) is not watched: a number that is used
again shows by the request that returned it, or by a request that its old kind does not take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Optional

from pytest_seves.spec import kvm, sev


@dataclass(frozen=True)
class Descriptor:
    """One descriptor: ``kvm``, ``vm:<fd>``, ``vcpu:<index>``, ``sev`` or what the kernel calls it."""

    kind: str
    vm: Optional[int] = None
    vcpu: Optional[int] = None


KVM = Descriptor("kvm")
SEV = Descriptor("sev")

#: Only the system descriptor or /dev/sev takes these; what a known VM or vCPU takes is not decided by them.
_SYSTEM = {
    kvm.KVM_GET_API_VERSION: KVM,
    kvm.KVM_CREATE_VM: KVM,
    kvm.KVM_GET_MSR_INDEX_LIST: KVM,
    kvm.KVM_GET_VCPU_MMAP_SIZE: KVM,
    kvm.KVM_GET_SUPPORTED_CPUID: KVM,
    kvm.KVM_GET_MSR_FEATURE_INDEX_LIST: KVM,
    sev.SEV_ISSUE_CMD: SEV,
}


def _link(pid: int, fd: int) -> Optional[str]:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return None


class Descriptors:
    """The descriptor table of one process, as far as its ioctls showed it."""

    def __init__(self, pid: int, link: Callable[[int, int], Optional[str]] = _link) -> None:
        self._pid = pid
        self._link = link
        self._known: dict[int, Descriptor] = {}

    def at(self, fd: int, request: int) -> Descriptor:
        """What *fd* is, given that *request* is issued on it."""
        known = self._known.get(fd)
        wanted = _SYSTEM.get(request)
        if known is not None and (wanted is None or wanted is known):
            return known
        found = wanted or self._by_name(fd, request)
        self._known[fd] = found
        return found

    def _by_name(self, fd: int, request: int) -> Descriptor:
        name = self._link(self._pid, fd)
        if name is None:
            return Descriptor("closed")
        if name == "/dev/kvm" or request == kvm.KVM_CHECK_EXTENSION:
            return KVM
        if name == "/dev/sev":
            return SEV
        if name == "anon_inode:kvm-vm":
            return Descriptor(f"vm:{fd}", vm=fd)
        prefix, _, index = name.rpartition(":")
        if prefix == "anon_inode:kvm-vcpu" and index.isdigit():
            return Descriptor(f"vcpu:{index}", vcpu=int(index))
        return Descriptor(name)

    def created_vm(self, fd: int) -> None:
        """KVM_CREATE_VM returned *fd*."""
        self._known[fd] = Descriptor(f"vm:{fd}", vm=fd)

    def created_vcpu(self, vm: int, fd: int, index: int) -> Descriptor:
        """KVM_CREATE_VCPU for *index*, issued on *vm*, returned *fd*."""
        self._known[fd] = found = Descriptor(f"vcpu:{index}", vm=vm, vcpu=index)
        return found

    def vcpu(self, vm: Optional[int], index: int) -> Optional[int]:
        """The descriptor of a vCPU; the newest one where several VMs have that index and *vm* is None."""
        for fd, known in reversed(list(self._known.items())):
            if known.vcpu == index and vm in (None, known.vm):
                return fd
        return None

    def closed(self, fd: int) -> None:
        """A request on *fd* ended with EBADF."""
        self._known.pop(fd, None)

    def forked(self, pid: int) -> Descriptors:
        """The table of a child process, equal at the moment of the fork."""
        child = Descriptors(pid, self._link)
        child._known = dict(self._known)
        return child

    def executed(self) -> None:
        """The process called execve(2): close-on-exec descriptors are gone."""
        self._known = {
            fd: known for fd, known in self._known.items() if self._link(self._pid, fd) is not None
        }
