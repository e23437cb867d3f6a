# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings written by hand: the recorder's format, line by line."""

from __future__ import annotations

import json
from typing import Any

from pytest_seves.evidence.timeline import FORMAT, Timeline
from pytest_seves.spec import kvm, sev
from pytest_seves.spec.sev import SevCmd

Record = dict[str, Any]
VM = 11


def ioctl(
    request: int, *, kind: str = f"vm:{VM}", vm: int | None = VM, before: bytes | None = None, **more: Any
) -> Record:
    """One event line, without its time; `before` is what the kernel saw."""
    more["in"] = None if before is None else before.hex()
    return {"tid": 7, "pid": 7, "fd": 3, "kind": kind, "vm": vm, "req": request, "arg": 0, "ret": 0, **more}


def create_vm(kind: int = 0) -> Record:
    """KVM_CREATE_VM."""
    return ioctl(kvm.KVM_CREATE_VM, kind="kvm", vm=None, arg=kind, ret=VM)


def create_vcpu(index: int) -> Record:
    """KVM_CREATE_VCPU."""
    return ioctl(kvm.KVM_CREATE_VCPU, arg=index, ret=20 + index)


def command(identifier: SevCmd, *, error: int = 0, ret: int = 0, data: bytes = b"", **more: Any) -> Record:
    """KVM_MEMORY_ENCRYPT_OP with a sub-command."""
    entry = sev.KVM_SEV_CMD.encode(id=int(identifier), sev_fd=9)
    leave = sev.KVM_SEV_CMD.encode(id=int(identifier), sev_fd=9, error=error)
    details: Record = {"id": int(identifier)} | ({"in": data.hex(), "out": "="} if data else {})
    return ioctl(kvm.KVM_MEMORY_ENCRYPT_OP, before=entry, out=leave.hex(), sev=details, ret=ret, **more)


def run(index: int) -> Record:
    """First KVM_RUN of a vCPU."""
    return ioctl(kvm.KVM_RUN, kind=f"vcpu:{index}", ret=None)


def jsonl(records: list[Record], *, end: bool = True) -> bytes:
    """The recording as bytes."""
    stamped = [{"t": 100 * number, "dt": 10, **record} for number, record in enumerate(records, start=1)]
    head: Record = {"format": FORMAT, "mode": "trace", "argv": ["vmm"], "t": 0}
    lines = [head, *stamped, *([{"end": True, "exit": {"status": 0}}] if end else [])]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def launch(vcpus: int = 2) -> list[Record]:
    """A whole launch as a correct VMM makes it."""
    return [
        create_vm(),
        command(SevCmd.KVM_SEV_ES_INIT),
        command(SevCmd.KVM_SEV_LAUNCH_START, data=sev.KVM_SEV_LAUNCH_START_DATA.encode(policy=5)),
        *(create_vcpu(index) for index in range(vcpus)),
        command(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA),
        command(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA),
        command(SevCmd.KVM_SEV_LAUNCH_MEASURE, error=4, ret=-5),
        command(SevCmd.KVM_SEV_LAUNCH_MEASURE),
        command(SevCmd.KVM_SEV_LAUNCH_FINISH),
        *(run(index) for index in range(vcpus)),
    ]


def timeline(records: list[Record]) -> Timeline:
    """The recording, decoded."""
    return Timeline.from_jsonl(jsonl(records))
