# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's CPU: instructions per second, an exit, a trip to QEMU, and how soon a guest's first AP answers.

Instructions and exits are measured on the engine alone; trips and guests under the machine's QEMU, on a
running model host, without SSH. Prints one JSON object.

Usage: python bench/execution.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_seves.model import cpuid
from pytest_seves.model.host import ModelHost
from tests.model.cpu import rom
from tests.model.cpu.board import Board, long_mode

PROFILE = "linux-6.1"
_INSTRUCTIONS = 50_000_000
_EXITS = 20_000
_TRIPS = 5_000
#: Limits: microseconds of a trip, and seconds of a guest by its number of vCPUs.
TRIP_LIMIT_US = 100.0
GUEST_LIMIT_S = {2: 1.0, 64: 5.0}
_DEADLINE_S = 60.0

#: mov ecx, count; again: add eax, 1; add ebx, eax; xor edx, ebx; dec ecx; jnz again; hlt
_LOOP = "83c001 01c3 31da ffc9 75f5 f4"
_LOOP_LENGTH = 5
#: mov r8d, count; again: cpuid; dec r8d; jnz again; hlt
_CPUIDS = "0fa2 41ffc8 75f9 f4"
#: 16-bit code: mov ecx, count; mov edx, 0x3fd; again: in al, dx; a32 loop again; mov dx, 0x3f8; mov al, "T";
#: out dx, al; hlt
_PORTS = "66bafd030000 ec 67e2fc baf803 b054 ee f4"
_JUMP_TO_START = bytes.fromhex("e90d00")


def engine_mips() -> float:
    """Million instructions per second without an exit."""
    count = _INSTRUCTIONS // _LOOP_LENGTH
    board = long_mode(b"\xb9" + count.to_bytes(4, "little") + bytes.fromhex(_LOOP), "plain")
    return _INSTRUCTIONS / _run(board) / 1e6


def exit_us() -> float:
    """Microseconds of an exit that the model answers by itself."""
    code = b"\x41\xb8" + _EXITS.to_bytes(4, "little") + bytes.fromhex(_CPUIDS)
    return _run(long_mode(code, "plain")) / _EXITS * 1e6


def _run(board: Board) -> float:
    started = time.perf_counter()
    board.work(turns=10**9)
    return time.perf_counter() - started


def qemu(vcpus: int, firmware: Path, console: Path, policy: int | None) -> str:
    """The command of one launch, as a shell's."""
    ebx = cpuid.published_encryption_ebx()
    machine = "q35,smm=off"
    options = f"-nodefaults -display none -no-user-config -accel kvm -cpu EPYC-v3 -m 128 -smp {vcpus}"
    values = ["-bios", str(firmware), "-serial", f"file:{console}"]
    if policy is not None:
        machine += ",confidential-guest-support=sev0"
        c_bit = f"cbitpos={ebx & 0x3F},reduced-phys-bits={ebx >> 6 & 0x3F}"
        values += ["-object", f"sev-guest,id=sev0,policy={policy:#x},{c_bit}"]
    return shlex.join(["exec", "qemu-system-x86_64", *options.split(), "-machine", machine, *values])


def guest_s(host: ModelHost, vcpus: int, image: bytes, last: bytes, policy: int | None = 5) -> float:
    """Seconds from QEMU's start to the guest's last character.

    :raise SystemExit: it did not come.
    """
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as directory:
        firmware, console = Path(directory) / "rom.bin", Path(directory) / "console"
        firmware.write_bytes(image)
        start = "import sys; from pytest_seves.model.session import main; main(sys.argv[1:])"
        arguments = [str(host.directory), PROFILE, str(cpuid.published_encryption_ebx())]
        argv = [sys.executable, "-c", start, *arguments]
        started = time.monotonic()
        process = subprocess.Popen(
            argv,
            env={**os.environ, "SSH_ORIGINAL_COMMAND": qemu(vcpus, firmware, console, policy)},
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[1],
        )
        try:
            while not (console.exists() and last in console.read_bytes()):
                if time.monotonic() > started + _DEADLINE_S or process.poll() is not None:
                    sys.exit(f"no {last!r}; model.log:\n{(host.directory / 'model.log').read_text()}")
                time.sleep(0.002)
            return time.monotonic() - started
        finally:
            process.terminate()
            process.wait()


def trip_us(host: ModelHost) -> float:
    """Microseconds of a port access that QEMU answers: a guest that makes many, less one that makes few."""

    def image(count: int) -> bytes:
        code = b"\x66\xb9" + count.to_bytes(4, "little") + bytes.fromhex(_PORTS)
        return (code.ljust(0xFFF0, b"\x90") + _JUMP_TO_START).ljust(0x10000, b"\x90")

    many, few = (guest_s(host, 1, image(count), b"T", policy=None) for count in (_TRIPS, 1))
    return (many - few) / (_TRIPS - 1) * 1e6


def main() -> int:
    """Run the benchmark; 1 when something is past its limit."""
    parser = argparse.ArgumentParser(description="The model's CPU in figures")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with ModelHost.start(PROFILE) as host:
        trip = statistics.median(trip_us(host) for _ in range(rounds))
        guests = {
            vcpus: statistics.median(guest_s(host, vcpus, rom.image(), rom.CONSOLE) for _ in range(rounds))
            for vcpus in GUEST_LIMIT_S
        }
    mips = statistics.median(engine_mips() for _ in range(rounds))
    exits = statistics.median(exit_us() for _ in range(rounds))
    result = {
        "benchmark": "execution",
        "engine_mips": round(mips),
        "exit_us": round(exits, 1),
        "trip_us": round(trip, 1),
        "trip_limit_us": TRIP_LIMIT_US,
        "guest_s": {vcpus: round(seconds, 3) for vcpus, seconds in guests.items()},
        "guest_limit_s": GUEST_LIMIT_S,
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    past = trip > TRIP_LIMIT_US or any(guests[vcpus] > limit for vcpus, limit in GUEST_LIMIT_S.items())
    return 1 if past else 0


if __name__ == "__main__":
    sys.exit(main())
