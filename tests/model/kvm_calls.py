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
import threading

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

# Eventfds: the VM has copies of ours

IOEVENTFD, IRQFD, CREATE_IRQCHIP, SET_MEMORY, RUN = 0x4040AE79, 0x4020AE76, 0xAE60, 0x4020AE46, 0xAE80
PIO, DEASSIGN = 2, 4


def ioeventfd(vm: int, descriptor: int, port: int, flags: int = PIO) -> object:
    """KVM_IOEVENTFD of one byte."""
    return call(vm, IOEVENTFD, struct.pack("<QQIiI36x", 0, port, 1, descriptor, flags))


def irqfd(vm: int, descriptor: int, gsi: int, flags: int = 0, resample: int = 0) -> object:
    """KVM_IRQFD."""
    raw = struct.pack("<IIII16x", descriptor & 0xFFFFFFFF, gsi, flags, resample & 0xFFFFFFFF)
    return call(vm, IRQFD, raw)


results["eventfd capabilities"] = [fcntl.ioctl(kvm, CHECK_EXTENSION, cap) for cap in (32, 36, 82, 100, 122)]
vm = create()
told, interrupt = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
results["irqfd without irqchip"] = irqfd(vm, interrupt, 4)
call(vm, CREATE_IRQCHIP)
results["ioeventfd"] = ioeventfd(vm, told, 0x82)
results["ioeventfd again"] = ioeventfd(vm, os.dup(told), 0x82)
results["ioeventfd of nothing"] = ioeventfd(vm, -1, 0x83)
results["ioeventfd of no eventfd"] = ioeventfd(vm, kvm, 0x83)
results["ioeventfd back"] = ioeventfd(vm, told, 0x83, PIO | DEASSIGN)
results["irqfd"] = irqfd(vm, interrupt, 4)
results["irqfd again"] = irqfd(vm, os.dup(interrupt), 5)
results["irqfd of nothing"] = irqfd(vm, -1, 5)
results["irqfd of no eventfd"] = irqfd(vm, kvm, 5)
results["irqfd with a bad resampler"] = irqfd(vm, os.eventfd(0), 5, 2, -1)

# F000:0000: the master PIC from vector 0x20, line 4 alone; out 0x81, al; sti; hlt.
# 0000:0500: out 0x82, al; out 0x80, al; hlt
low = mmap.mmap(-1, 1 << 16)
low[0x90:0x94] = struct.pack("<HH", 0x500, 0)
low[0x500:0x505] = bytes.fromhex("e682 e680 f4")
memory[:24] = bytes.fromhex("b011e620 b020e621 b004e621 b001e621 b0efe621 e681 fb f4")
memory[0xFFF0:0xFFF3] = bytes.fromhex("e90d00")
low_base = ctypes.addressof(ctypes.c_char.from_buffer(low))
call(vm, SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0, 1 << 16, low_base))
call(vm, SET_MEMORY, struct.pack("<IIQQQ", 1, 0, 0xFFFF0000, 1 << 16, base))
vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
run = mmap.mmap(vcpu, 12288)


def go() -> list[object]:
    """KVM_RUN: its result, the exit's reason and port."""
    return [call(vcpu, RUN, 0), *struct.unpack_from("<I", run, 8), *struct.unpack_from("<H", run, 34)]


results["before the interrupt"] = go()
ended: list[object] = []
halted = threading.Thread(target=lambda: ended.extend(go()), daemon=True)
halted.start()
halted.join(0.2)  # either order is right; this one, that it waits by then, is the one of interest
os.eventfd_write(interrupt, 1)
halted.join(30)
results["after the interrupt"] = ended
results["told"] = os.eventfd_read(told)

print(json.dumps(results))
