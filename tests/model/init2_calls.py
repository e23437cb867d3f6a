# SPDX-License-Identifier: GPL-2.0-or-later
"""A small VMM for kernels with VM types: requests by hand, what each gave printed as JSON.

Sent through ssh on python3's standard input, so it uses the standard library only and spells numbers out.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct

ENCRYPT_OP, CREATE_VM, CREATE_VCPU, CHECK_EXTENSION = 0xC008AEBA, 0xAE01, 0xAE41, 0xAE03
ES_INIT, START, VMSA, MEASURE, INIT2 = 1, 2, 4, 6, 22
SYNC_REGS, READONLY_MEM, SMM, VM_TYPES = 74, 81, 117, 235
REGION, REGION2, RUN, SMI, SET_CPUID2 = 0x4020AE46, 0x40A0AE49, 0xAE80, 0xAEB7, 0x4008AE90
EFER, PAT, XSS, TSC_DEADLINE = 0xC0000080, 0x277, 0xDA0, 0x6E0
SIZES = {
    "GET_REGS": (0x8090AE81, 144),
    "SET_REGS": (0x4090AE82, 144),
    "GET_SREGS": (0x8138AE83, 312),
    "SET_SREGS": (0x4138AE84, 312),
    "GET_SREGS2": (0x8140AECC, 320),
    "SET_SREGS2": (0x4140AECD, 320),
    "GET_FPU": (0x81A0AE8C, 416),
    "SET_FPU": (0x41A0AE8D, 416),
    "GET_XSAVE": (0x9000AEA4, 4096),
    "SET_XSAVE": (0x5000AEA5, 4096),
    "GET_XSAVE2": (0x9000AECF, 4096),
    "GET_XCRS": (0x8188AEA6, 392),
    "SET_XCRS": (0x4188AEA7, 392),
    "GET_DEBUGREGS": (0x8080AEA1, 128),
    "SET_DEBUGREGS": (0x4080AEA2, 128),
    "SET_GUEST_DEBUG": (0x4048AE9B, 72),
    "GET_VCPU_EVENTS": (0x8040AE9F, 64),
    "GET_MP_STATE": (0x8004AE98, 4),
}

kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
sev = os.open("/dev/sev", os.O_RDWR | os.O_CLOEXEC)
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 1 << 16)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))


def call(descriptor: int, request: int, argument: int = 0) -> object:
    """The result, or the name of the errno."""
    result = libc.ioctl(descriptor, ctypes.c_ulong(request), ctypes.c_ulong(argument))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def command(vm: int, number: int, data: int = 0) -> object:
    """One KVM_MEMORY_ENCRYPT_OP sub-command."""
    memory[:24] = struct.pack("<IIQII", number, 0, data, 0, sev)
    return call(vm, ENCRYPT_OP, base)


def init2(vm: int, features: int = 0, flags: int = 0, ghcb: int = 0) -> object:
    """KVM_SEV_INIT2."""
    memory[64:112] = struct.pack("<QIHH32x", features, flags, ghcb, 0)
    return command(vm, INIT2, base + 64)


def vm_of(kind: int) -> int:
    """A VM of a type."""
    return fcntl.ioctl(kvm, CREATE_VM, kind)


def refused(kind: int, features: int = 0, flags: int = 0, ghcb: int = 0) -> object:
    """KVM_SEV_INIT2 on a fresh VM."""
    vm = vm_of(kind)
    try:
        return init2(vm, features, flags, ghcb)
    finally:
        os.close(vm)


def region(vm: int, request: int, flags: int) -> object:
    """A memory slot of 16 pages."""
    memory[512:672] = struct.pack("<IIQQQ", 0, flags, 0, 1 << 16, base).ljust(160, b"\0")
    return call(vm, request, base + 512)


def msr(vcpu: int, index: int, value: int | None = None) -> object:
    """KVM_SET_MSRS, or KVM_GET_MSRS of one register: [count, value]."""
    memory[1024:1048] = struct.pack("<IIIIQ", 1, 0, index, 0, 0x5A if value is None else value)
    result = call(vcpu, 0xC008AE88 if value is None else 0x4008AE89, base + 1024)
    return [result, struct.unpack_from("<Q", memory, 1040)[0]] if value is None else result


def supported_cpuid(vcpu: int) -> None:
    """Give the vCPU everything that KVM supports."""
    memory[8192:8200] = struct.pack("<II", 128, 0)
    call(kvm, 0xC008AE05, base + 8192)
    call(vcpu, SET_CPUID2, base + 8192)


def registers(vcpu: int) -> dict[str, object]:
    """What each register request gives; a SET gives back what its GET found, where it did."""
    found: dict[str, object] = {}
    for name, (request, size) in SIZES.items():
        if name.startswith("GET"):
            memory[16384 : 16384 + size] = bytes(size)
        found[name] = call(vcpu, request, base + 16384)
    return found


def start(vm: int) -> object:
    """LAUNCH_START without a session."""
    memory[64:104] = struct.pack("<IIQIIQII", 0, 5, 0, 0, 0, 0, 0, 0)
    return command(vm, START, base + 64)


def launched(vm: int) -> int:
    """A vCPU whose save area is measured."""
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    supported_cpuid(vcpu)
    msr(vcpu, EFER, 0)
    msr(vcpu, XSS, 0)
    start(vm)
    command(vm, VMSA)
    return vcpu


def measured(features: int) -> int:
    """The firmware's handle of an INIT2 guest with one vCPU, at reset but for RDX: an EPYC-v3's signature."""
    vm = vm_of(3)
    init2(vm, features)
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    memory[4096:4240] = struct.pack("<18Q", 0, 0, 0, 0x800F12, *[0] * 12, 0xFFF0, 2)
    call(vcpu, SIZES["SET_REGS"][0], base + 4096)
    start(vm)
    handle: int = struct.unpack_from("<I", memory, 64)[0]
    command(vm, VMSA)
    os.close(vm)
    return handle


def protected(vm: int) -> dict[str, object]:
    """What a protected vCPU lets one do."""
    vcpu = launched(vm)
    return {
        "registers": registers(vcpu),
        "EFER": [msr(vcpu, EFER), msr(vcpu, EFER, 0x500), msr(vcpu, EFER)],
        "PAT": [msr(vcpu, PAT), msr(vcpu, PAT, 0x6), msr(vcpu, PAT)],
        "XSS": [msr(vcpu, XSS), msr(vcpu, XSS, 0x800), msr(vcpu, XSS)],
        "TSC_DEADLINE": [msr(vcpu, TSC_DEADLINE, 3), msr(vcpu, TSC_DEADLINE)],
        "smi": call(vcpu, SMI),
        "vmsa again": command(vm, VMSA),
    }


def attribute(request: int, group: int, number: int) -> object:
    """A device attribute of /dev/kvm: [result, value]."""
    memory[2048:2080] = struct.pack("<IIQQQ", 0, group, number, base + 2072, 0)
    result = call(kvm, request, base + 2048)
    return [result, struct.unpack_from("<Q", memory, 2072)[0]]


results: dict[str, object] = {
    "vm types": call(kvm, CHECK_EXTENSION, VM_TYPES),
    "types": [isinstance(call(kvm, CREATE_VM, kind), int) for kind in range(6)],
    "attribute": [attribute(0x4018AEE3, 1, 0), attribute(0x4018AEE2, 1, 0), attribute(0x4018AEE2, 1, 9)],
}

default = vm_of(0)
results["init2 of a default vm"] = init2(default)
results["region2"] = region(default, REGION2, 0)
results["es_init"] = command(default, ES_INIT)
results["es_init again"] = command(default, ES_INIT)
results["read-only slot"] = region(default, REGION, 2)
results["caps"] = [call(default, CHECK_EXTENSION, number) for number in (READONLY_MEM, SYNC_REGS, SMM)]
results["protected"] = protected(default)

if results["vm types"]:
    results["init2 flags"] = refused(3, flags=1)
    results["init2 unknown feature"] = refused(3, features=1 << 4)
    results["init2 debug swap"] = refused(3, features=1 << 5)
    results["init2 ghcb"] = [refused(3, ghcb=number) for number in range(4)]
    results["init2 sev"] = [refused(2), refused(2, ghcb=1), refused(2, features=1 << 5)]
    vm = vm_of(3)
    results["es_init of a type 3 vm"] = command(vm, ES_INIT)
    results["type 3 start before init2"] = start(vm)
    results["type 3 caps before init2"] = [
        call(vm, CHECK_EXTENSION, number) for number in (READONLY_MEM, SYNC_REGS, SMM)
    ]
    early = fcntl.ioctl(vm, CREATE_VCPU, 0)
    results["type 3 run before init2"] = call(early, RUN)
    results["type 3 registers before init2"] = registers(early)
    results["init2 with a vcpu"] = init2(vm)
    vm = vm_of(3)
    results["init2"] = init2(vm)
    results["init2 again"] = init2(vm)
    results["type 3 caps"] = [call(vm, CHECK_EXTENSION, number) for number in (READONLY_MEM, SYNC_REGS, SMM)]
    results["type 3 slots"] = [region(vm, REGION, 2), region(vm, REGION, 0)]
    results["type 3 protected"] = protected(vm)
    late = fcntl.ioctl(vm, CREATE_VCPU, 1)
    run = mmap.mmap(late, 12288)
    run[288] = 1
    results["type 3 sync regs"] = call(late, RUN)
    vm = vm_of(2)
    init2(vm)
    results["type 2 caps"] = [call(vm, CHECK_EXTENSION, number) for number in (READONLY_MEM, SYNC_REGS, SMM)]
    results["measured"] = [measured(0), measured(1 << 5)]

print(json.dumps(results))
