# SPDX-License-Identifier: GPL-2.0-or-later
"""A small VMM that runs on the model host: issues requests by hand and prints what each gave, as JSON.

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
INIT, ES_INIT, START, DATA, VMSA, MEASURE, FINISH, STATUS, INIT2 = 0, 1, 2, 3, 4, 6, 7, 16, 22
SMM = 117

kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
sev = os.open("/dev/sev", os.O_RDWR | os.O_CLOEXEC)
memory = mmap.mmap(-1, 1 << 16)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))


def call(descriptor: int, request: int, argument: object = 0) -> object:
    """The result, or the name of the errno."""
    try:
        result = fcntl.ioctl(descriptor, request, argument)  # type: ignore[call-overload]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return result if isinstance(result, int) else 0  # with bytes, Python returns the bytes


def command(vm: int, number: int, data: int = 0, device: int = sev) -> list[object]:
    """One KVM_MEMORY_ENCRYPT_OP sub-command: [result, firmware error]."""
    block = bytearray(struct.pack("<IIQII", number, 0, data, 0, device))
    result = call(vm, ENCRYPT_OP, block)
    return [result, struct.unpack_from("<I", block, 16)[0]]


def create() -> int:
    """A VM."""
    return fcntl.ioctl(kvm, CREATE_VM, 0)


def start(vm: int, policy: int) -> list[object]:
    """LAUNCH_START without a session."""
    memory[:40] = struct.pack("<IIQIIQII", 0, policy, 0, 0, 0, 0, 0, 0)
    return command(vm, START, base)


def launched(policy: int = 5) -> tuple[int, int]:
    """An ES guest in LUPDATE with one vCPU in its reset state."""
    vm = create()
    command(vm, ES_INIT)
    start(vm, policy)
    return vm, fcntl.ioctl(vm, CREATE_VCPU, 0)


def measure(vm: int, length: int) -> tuple[list[object], int]:
    """LAUNCH_MEASURE: its result, and the length told back."""
    memory[:16] = struct.pack("<QII", base + 4096, length, 0)
    return command(vm, MEASURE, base), struct.unpack_from("<I", memory, 8)[0]


def usage() -> str:
    """ASIDs in use."""
    with open("/sys/fs/cgroup/misc.current", encoding="ascii") as file:
        return file.read()


results: dict[str, object] = {}

vm = create()
results["probe"] = call(vm, ENCRYPT_OP, 0)
results["start before init"] = start(vm, 5)[0]
results["region before init"] = call(vm, 0x8010AEBB, struct.pack("<QQ", base, 4096))
results["smm"] = [fcntl.ioctl(kvm, CHECK_EXTENSION, SMM), fcntl.ioctl(vm, CHECK_EXTENSION, SMM)]
results["init2"] = command(vm, INIT2)[0]
results["vm type 3"] = call(kvm, CREATE_VM, 3)
results["unknown sub-command"] = command(vm, 99)[0]
results["es_init"] = command(vm, ES_INIT)
results["es_init again"] = command(vm, ES_INIT)[0]
results["smm of an es vm"] = fcntl.ioctl(vm, CHECK_EXTENSION, SMM)
results["start without /dev/sev"] = command(vm, START, base, device=0)[0]
results["in use"] = usage()
os.close(vm)

vm = create()
vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
results["es_init with a vcpu"] = command(vm, ES_INIT)[0]
results["vcpu twice"] = call(vm, CREATE_VCPU, 0)
results["vmsa of a plain vm"] = command(vm, VMSA)[0]

vm = create()
results["init"] = command(vm, INIT)
results["es policy after plain init"] = start(vm, 5)
results["vmsa after plain init"] = command(vm, VMSA)[0]

vm, vcpu = launched()
memory[8192:12288] = b"plain text......" * 256
memory[:16] = struct.pack("<QII", base + 8192, 4096, 0)
results["update data"] = command(vm, DATA, base)
results["ciphertext"] = memory[8192:12288] != b"plain text......" * 256
memory[:16] = struct.pack("<QII", base + 8192, 8, 0)
results["short data"] = command(vm, DATA, base)
memory[:16] = struct.pack("<QII", 0, 4096, 0)
results["unmapped data"] = command(vm, DATA, base)[0]
results["debug before"] = call(vcpu, 0x4048AE9B, bytes(72))
results["vmsa"] = command(vm, VMSA)
results["vmsa again"] = command(vm, VMSA)
results["debug after"] = call(vcpu, 0x4048AE9B, bytes(72))
results["finish before measure"] = command(vm, FINISH)
results["measure query"] = measure(vm, 0)
results["measure short"] = measure(vm, 16)
results["measure"] = measure(vm, 64)
results["vmsa after measure"] = command(vm, VMSA)
results["smi"] = call(vcpu, 0xAEB7, 0)
results["finish"] = command(vm, FINISH)
results["status"] = [command(vm, STATUS, base), struct.unpack_from("<II", memory, 4)]
late = fcntl.ioctl(vm, CREATE_VCPU, 1)
run = mmap.mmap(late, 12288)
results["late vcpu"] = [call(late, 0xAE80, 0), struct.unpack_from("<I", run, 8)[0]]
results["policy of a newer api"] = start(launched(5 | 9 << 16)[0], 5 | 9 << 16)

print(json.dumps(results))
