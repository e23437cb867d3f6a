# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ioctls are recorded, what is read from the VMM's memory at each, and the line that it becomes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import Any, NamedTuple, Optional

from pytest_seves.agent.descriptors import Descriptor
from pytest_seves.agent.ptrace import RESTARTS
from pytest_seves.spec import kvm, sev

#: Requests of which the result does not matter while the VMM sets up its vCPUs: one stop each, not two.
REGISTERS = frozenset(
    {
        kvm.KVM_GET_REGS,
        kvm.KVM_SET_REGS,
        kvm.KVM_GET_SREGS,
        kvm.KVM_SET_SREGS,
        kvm.KVM_GET_SREGS2,
        kvm.KVM_SET_SREGS2,
        kvm.KVM_GET_MSRS,
        kvm.KVM_SET_MSRS,
        kvm.KVM_GET_FPU,
        kvm.KVM_SET_FPU,
        kvm.KVM_GET_XSAVE,
        kvm.KVM_GET_XSAVE2,
        kvm.KVM_SET_XSAVE,
        kvm.KVM_GET_XCRS,
        kvm.KVM_SET_XCRS,
        kvm.KVM_GET_DEBUGREGS,
        kvm.KVM_SET_DEBUGREGS,
        kvm.KVM_GET_VCPU_EVENTS,
        kvm.KVM_SET_VCPU_EVENTS,
        kvm.KVM_GET_MP_STATE,
        kvm.KVM_SET_MP_STATE,
        kvm.KVM_SET_CPUID2,
    }
)

#: What is recorded. KVM_RUN is not among them: each vCPU's first one is found without a filter.
RECORDED = REGISTERS | {
    kvm.KVM_CREATE_VM,
    kvm.KVM_CHECK_EXTENSION,
    kvm.KVM_CREATE_VCPU,
    kvm.KVM_CREATE_IRQCHIP,
    kvm.KVM_SET_BOOT_CPU_ID,
    kvm.KVM_SET_CLOCK,
    kvm.KVM_SET_USER_MEMORY_REGION,
    kvm.KVM_SET_USER_MEMORY_REGION2,
    kvm.KVM_ENABLE_CAP,
    kvm.KVM_MEMORY_ENCRYPT_OP,
    kvm.KVM_MEMORY_ENCRYPT_REG_REGION,
    kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION,
    kvm.KVM_SET_GUEST_DEBUG,
    kvm.KVM_TRANSLATE,
    kvm.KVM_SMI,
    kvm.KVM_NMI,
    sev.SEV_ISSUE_CMD,
}

#: KVM_CHECK_EXTENSION is recorded for these: what a verdict about a SEV-ES launch can rest on.
CAPABILITIES = frozenset(
    {
        kvm.KVM_CAP_IRQCHIP,
        kvm.KVM_CAP_MAX_VCPUS,
        kvm.KVM_CAP_READONLY_MEM,
        kvm.KVM_CAP_X86_SMM,
        kvm.KVM_CAP_SPLIT_IRQCHIP,
        kvm.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
        kvm.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
        kvm.KVM_CAP_VM_TYPES,
    }
)

#: Structures that end in an array: (offset of the u32 count, size of the head, size of an element).
_ARRAYS = {
    kvm.KVM_GET_MSRS: (0, 8, 16),
    kvm.KVM_SET_MSRS: (0, 8, 16),
    kvm.KVM_SET_CPUID2: (0, 8, 40),
}
#: _IOR in the header, but the structure is read by the kernel.
_REALLY_INPUT = frozenset(
    {kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION, kvm.KVM_SET_IRQCHIP}
)
#: _IOWR(unsigned long) in the header, but the argument points to a struct kvm_sev_cmd.
_REAL_SIZE = {kvm.KVM_MEMORY_ENCRYPT_OP: sev.KVM_SEV_CMD.size}
_MAX_COUNT = 1 << 12
_SHOWN = 4096
_CHUNK = 1 << 20

_MEMORY = {
    int(command): tuple(
        (
            sev.SUBCOMMAND_DATA[command].field(address).offset,
            sev.SUBCOMMAND_DATA[command].field(length).offset,
        )
        for address, length in ranges
    )
    for command, ranges in sev.SUBCOMMAND_MEMORY.items()
}
_DATA_SIZE = {int(command): layout.size for command, layout in sev.SUBCOMMAND_DATA.items()}
_ISSUE_SIZE = {int(sev.SevIssue.SEV_PLATFORM_STATUS): sev.SEV_USER_DATA_STATUS.size}
_SEV_CMD = struct.Struct("<IIQII")
_SEV_ISSUE = struct.Struct("<IQI")
_dumps = json.JSONEncoder(separators=(",", ":")).encode


class Plan(NamedTuple):
    """What one request number asks for."""

    size: int
    array: Optional[tuple[int, int, int]]
    reads: bool
    writes: bool


def plan(request: int) -> Plan:
    """Derived from the number itself (asm-generic/ioctl.h), with the exceptions above."""
    size = _REAL_SIZE.get(request, request >> 16 & 0x3FFF)
    reads = bool(request >> 30 & 1) or request in _REALLY_INPUT
    writes = bool(request >> 31) and request not in _REALLY_INPUT
    return Plan(size, _ARRAYS.get(request), reads, writes)


class Memory:
    """The memory of one VMM process, through /proc/PID/mem."""

    def __init__(self) -> None:
        self._handle = -1

    def _open(self, tid: int) -> bool:
        if self._handle < 0:
            try:
                self._handle = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
            except OSError:  # it is gone
                return False
        return True

    def read(self, tid: int, address: int, size: int) -> bytes:
        """*size* bytes; fewer, or none, where nothing is mapped."""
        if self._handle < 0 and not self._open(tid):
            return b""
        try:
            return os.pread(self._handle, size, address)
        except (OSError, OverflowError):
            return b""

    def write(self, tid: int, address: int, data: bytes) -> bool:
        """Whether all of *data* was written."""
        if not self._open(tid):
            return False
        try:
            return os.pwrite(self._handle, data, address) == len(data)
        except (OSError, OverflowError):
            return False

    def close(self) -> None:
        """Forget the memory: the process ended, or an exec replaced it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Call:
    """One ioctl of the VMM, from its entry to its line in the timeline."""

    __slots__ = (
        "arg", "data", "descriptor", "dt", "executed", "fd", "injected", "issue", "issued_ns", "memory",
        "pid", "plan", "raw_in", "raw_out", "request", "ret", "rules", "sev", "sev_id", "tid",
    )  # fmt: skip

    def __init__(
        self, issued_ns: int, pid: int, tid: int, fd: int, request: int, arg: int, memory: Memory
    ) -> None:
        self.issued_ns = issued_ns
        self.dt: Optional[int] = None
        self.pid = pid
        self.tid = tid
        self.fd = fd
        self.request = request
        self.arg = arg
        self.memory = memory
        self.descriptor: Descriptor
        self.plan: Plan
        self.raw_in: Optional[bytes] = None
        self.raw_out: Optional[bytes] = None
        self.ret: Optional[int] = None
        self.data = 0  # what the structure's data pointer holds, for the two SEV requests
        self.sev_id: Optional[int] = None
        self.sev: Optional[dict[str, Any]] = None
        self.issue: Optional[dict[str, Any]] = None
        self.rules: Optional[list[str]] = None
        self.executed = True
        self.injected = False

    def size(self) -> int:
        """Length of the structure behind the argument; reads the count of one that ends in an array."""
        array = self.plan.array
        if array is None:
            return self.plan.size
        offset, head, element = array
        raw = self.memory.read(self.tid, self.arg + offset, 4)
        count = struct.unpack("<I", raw)[0] if len(raw) == 4 else 0
        return head + element * min(count, _MAX_COUNT)

    def enter(self) -> None:
        """Read what the kernel is about to read."""
        if not self.plan.reads or not self.arg:
            return
        self.raw_in = raw = self.memory.read(self.tid, self.arg, self.size())
        if self.request == kvm.KVM_MEMORY_ENCRYPT_OP and len(raw) == _SEV_CMD.size:
            self._enter_sev(raw)
        elif self.request == sev.SEV_ISSUE_CMD and len(raw) == _SEV_ISSUE.size:
            command, self.data, _ = _SEV_ISSUE.unpack(raw)
            self.issue = {"cmd": command}

    def _enter_sev(self, raw: bytes) -> None:
        self.sev_id, _, self.data, _, _ = _SEV_CMD.unpack(raw)
        self.sev = {"id": self.sev_id}
        size = _DATA_SIZE.get(self.sev_id)
        if not self.data or size is None:
            return
        data = self.memory.read(self.tid, self.data, size)
        self.sev["in"] = data.hex()
        if len(data) == size:  # read now: the firmware encrypts in place
            self.sev["mem"] = [
                found for place in _MEMORY.get(self.sev_id, ()) for found in self._range(data, place)
            ]

    def _range(self, data: bytes, place: tuple[int, int]) -> list[dict[str, Any]]:
        address: int = struct.unpack_from("<Q", data, place[0])[0]
        length: int = struct.unpack_from("<I", data, place[1])[0]
        if not address or not length:
            return []
        digest = hashlib.sha256()
        first = b""
        for offset in range(0, length, _CHUNK):
            wanted = min(_CHUNK, length - offset)
            part = self.memory.read(self.tid, address + offset, wanted)
            digest.update(part)
            first = first or part
            if len(part) < wanted:
                return [{"addr": address, "len": length, "fault": offset + len(part)}]
        found = {"addr": address, "len": length, "sha256": digest.hexdigest()}
        if length <= _SHOWN:
            found["hex"] = first.hex()
        return [found]

    def leave(self, ret: int) -> None:
        """Read what the kernel has written."""
        self.ret = ret
        if not self.plan.writes or not self.arg:
            return
        self.raw_out = self.memory.read(self.tid, self.arg, self.size())
        if self.issue is not None:
            size = _ISSUE_SIZE.get(self.issue["cmd"])
            if self.data and size:
                self.issue["out"] = self.memory.read(self.tid, self.data, size).hex()
        if self.sev is None or "in" not in self.sev or self.sev_id is None:
            return
        data = self.memory.read(self.tid, self.data, _DATA_SIZE[self.sev_id])
        self.sev["out"] = data.hex()
        measure = sev.SevCmd.KVM_SEV_LAUNCH_MEASURE
        if self.sev_id == measure and ret == 0 and len(data) == _DATA_SIZE[measure]:
            self.sev["mem"] = self._range(data, (0, 8))

    def line(self) -> str:
        """The event as one line of JSON."""
        descriptor = self.descriptor
        event: dict[str, Any] = {
            "t": self.issued_ns,
            "dt": self.dt,
            "pid": self.pid,
            "tid": self.tid,
            "fd": self.fd,
            "kind": descriptor.kind,
            "vm": descriptor.vm,
            "req": self.request,
            "arg": self.arg,
            "in": None if self.raw_in is None else self.raw_in.hex(),
            "out": None
            if self.raw_out is None
            else "="
            if self.raw_out == self.raw_in
            else self.raw_out.hex(),
            "ret": self.ret,
        }
        if self.sev is not None:
            event["sev"] = self.sev
        if self.issue is not None:
            event["issue"] = self.issue
        if self.rules:
            event["rules"] = self.rules
        if not self.executed:
            event["executed"] = False
        if self.injected:
            event["injected"] = True
        if self.ret in RESTARTS:
            event["interrupted"] = True  # no result: the kernel restarts it, or a handler's EINTR follows
        return _dumps(event)
