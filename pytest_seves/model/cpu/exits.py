# SPDX-License-Identifier: GPL-2.0-or-later
"""How KVM_RUN ends: what goes into kvm_run, and what comes back with the next KVM_RUN.

Source: Linux ``include/uapi/linux/kvm.h`` struct kvm_run; Documentation/virt/kvm/api.rst section 5.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Generator
from dataclasses import dataclass

_EXIT_REASON, _READY_FOR_INTERRUPT, _APIC_BASE, _UNION = 8, 12, 24, 32
_DATA = 4096  # KVM_PIO_PAGE_OFFSET
DATA_SIZE = 4096

_IO, _HLT, _MMIO, _SHUTDOWN, _FAIL_ENTRY, _INTERNAL_ERROR, _SYSTEM_EVENT = 2, 5, 6, 8, 9, 17, 24
_RESET_HOLD = 32
_SEV_TERM = 6
_EMULATION, _UNEXPECTED_EXIT = 1, 4
_SVM_EXIT_ERR = (1 << 64) - 1


@dataclass(frozen=True)
class PortIo:
    """KVM_EXIT_IO; `data` None is IN."""

    port: int
    size: int
    count: int
    data: bytes | None

    def store(self, run: mmap.mmap) -> int:
        """Fill kvm_run; what KVM_RUN returns."""
        if self.data is not None:
            run[_DATA : _DATA + len(self.data)] = self.data
        direction = 0 if self.data is None else 1
        struct.pack_into("<I", run, _EXIT_REASON, _IO)
        struct.pack_into("<BBHIQ", run, _UNION, direction, self.size, self.port, self.count, _DATA)
        return 0

    def result(self, run: mmap.mmap) -> bytes:
        """What the VMM has put there."""
        return run[_DATA : _DATA + self.size * self.count]


@dataclass(frozen=True)
class Mmio:
    """KVM_EXIT_MMIO; `data` None is a read."""

    gpa: int
    size: int
    data: bytes | None

    def store(self, run: mmap.mmap) -> int:
        """Fill kvm_run; what KVM_RUN returns."""
        data = self.data or b""
        struct.pack_into("<I", run, _EXIT_REASON, _MMIO)
        struct.pack_into("<Q8sIB", run, _UNION, self.gpa, data, self.size, self.data is not None)
        return 0

    def result(self, run: mmap.mmap) -> bytes:
        """What the VMM has put there."""
        return run[_UNION + 8 : _UNION + 8 + self.size]


@dataclass(frozen=True)
class Shutdown:
    """A triple fault; `failed`: KVM_RUN fails, as before bc3d7c5570a0 (6.7)."""

    failed: bool

    def store(self, run: mmap.mmap) -> int:
        """Fill kvm_run; what KVM_RUN returns."""
        struct.pack_into("<I", run, _EXIT_REASON, _SHUTDOWN)
        return -errno.EINVAL if self.failed else 0

    def result(self, _: mmap.mmap) -> bytes:
        """Nothing comes back."""
        return b""


@dataclass(frozen=True)
class Termination:
    """KVM_EXIT_SYSTEM_EVENT of type SEV_TERM (c24a950ec7d6, 5.19)."""

    ghcb_msr: int

    def store(self, run: mmap.mmap) -> int:
        """Fill kvm_run; what KVM_RUN returns."""
        struct.pack_into("<I", run, _EXIT_REASON, _SYSTEM_EVENT)
        struct.pack_into("<IIQ", run, _UNION, _SEV_TERM, 1, self.ghcb_msr)
        return 0

    def result(self, _: mmap.mmap) -> bytes:
        """Nothing comes back."""
        return b""


@dataclass(frozen=True)
class Plain:
    """An exit that is little more than its reason, or an errno."""

    reason: int
    result_code: int = 0
    suberror: int = 0

    def store(self, run: mmap.mmap) -> int:
        """Fill kvm_run; what KVM_RUN returns."""
        struct.pack_into("<I", run, _EXIT_REASON, self.reason)
        if self.reason == _INTERNAL_ERROR:
            struct.pack_into("<II", run, _UNION, self.suberror, 0)
        elif self.reason == _FAIL_ENTRY:
            struct.pack_into("<QI", run, _UNION, _SVM_EXIT_ERR, 0)
        return self.result_code

    def result(self, _: mmap.mmap) -> bytes:
        """Nothing comes back."""
        return b""


HALT = Plain(_HLT)
RESET_HOLD = Plain(_RESET_HOLD)
#: VMRUN refuses a save area that was never encrypted.
INVALID_STATE = Plain(_FAIL_ENTRY)
INTERNAL_ERROR = Plain(_INTERNAL_ERROR, suberror=_UNEXPECTED_EXIT)
EMULATION_FAILURE = Plain(_INTERNAL_ERROR, suberror=_EMULATION)
INVALID = Plain(0, -errno.EINVAL)

Exit = PortIo | Mmio | Shutdown | Termination | Plain
#: An exit's handler: yields each exit to the VMM, is sent what came back.
Handling = Generator[Exit, bytes, None]
#: One that ends with bytes that were read.
Reading = Generator[Exit, bytes, bytes]


def store_common(run: mmap.mmap, *, interruptible: bool, apic_base: int) -> None:
    """The fields that every KVM_RUN leaves behind (post_kvm_run_save())."""
    struct.pack_into("<BB", run, _READY_FOR_INTERRUPT, interruptible, 0)
    struct.pack_into("<Q", run, _APIC_BASE, apic_base)
