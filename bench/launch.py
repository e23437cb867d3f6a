# SPDX-License-Identifier: GPL-2.0-or-later
"""How long QEMU takes on the model, from its fork to the first KVM_RUN of a SEV-ES guest.

Without SSH and without the recorder: only the modelled kernel is measured. Each round is a session of a
running model host, ended as soon as a vCPU enters the guest. Prints one JSON object; the reference is the
first prototype's median on two idle cores.

Usage: python bench/launch.py [--vcpus N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_seves.model import cpuid, session, supervisor
from pytest_seves.model.host import ModelHost

if TYPE_CHECKING:
    from pytest_seves.model.kvm_vcpu import Vcpu

PROFILE = "linux-6.1"
#: Median seconds of the prototype by vCPU count, and how many times that is allowed.
REFERENCE_S = {1: 0.065, 2: 0.068, 16: 0.113, 64: 0.38}
LIMIT_RATIO = 2.0


def qemu(vcpus: int, firmware: Path) -> str:
    """The command of one launch, as a shell's."""
    ebx = cpuid.published_encryption_ebx()
    guest = f"sev-guest,id=sev0,policy=0x5,cbitpos={ebx & 0x3F},reduced-phys-bits={ebx >> 6 & 0x3F}"
    machine = "q35,smm=off,kernel_irqchip=on,confidential-guest-support=sev0"
    options = f"-nodefaults -display none -no-user-config -accel kvm -cpu EPYC-v3 -m 512 -smp {vcpus}"
    values = ["-machine", machine, "-object", guest, "-bios", str(firmware)]
    return shlex.join(["exec", "qemu-system-x86_64", *options.split(), *values])


def run_session(directory: str, result: str) -> None:
    """In a process of its own: be the session, note the first KVM_RUN, end the VMM."""
    park = supervisor.GuestSupervisor.park

    def note(self: supervisor.GuestSupervisor, call: supervisor.Call, vcpu: Vcpu) -> None:
        took_s = time.monotonic() - started
        if not Path(result).exists():
            Path(result).write_text(str(took_s))
            os.kill(call.thread, signal.SIGKILL)
        park(self, call, vcpu)

    supervisor.GuestSupervisor.park = note  # type: ignore[method-assign]
    started = time.monotonic()
    session.main([directory, PROFILE, str(cpuid.published_encryption_ebx())])


def launch_s(host: ModelHost, vcpus: int) -> float:
    """Seconds of one launch.

    :raise SystemExit: the guest never ran; the model's log is in the host's directory.
    """
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as directory:
        result = Path(directory) / "took_s"
        subprocess.run(
            [sys.executable, __file__, "--session", str(host.directory), str(result)],
            env={**os.environ, "SSH_ORIGINAL_COMMAND": qemu(vcpus, host.firmware)},
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,  # the VMM was killed, and the session ends as its command did
        )
        if not result.exists():
            sys.exit(f"no KVM_RUN; model.log:\n{(host.directory / 'model.log').read_text()}")
        return float(result.read_text())


def main() -> int:
    """Run the benchmark; 1 when the median is past the limit."""
    parser = argparse.ArgumentParser(description="Time from QEMU's fork to the first KVM_RUN on the model")
    parser.add_argument("--vcpus", type=int, default=64, choices=sorted(REFERENCE_S))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--session", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.session:
        run_session(*arguments.session)
        return 0
    with ModelHost.start(PROFILE) as host:
        launch_s(host, 1)  # byte code, and the file cache
        took_s = [launch_s(host, arguments.vcpus) for _ in range(arguments.rounds)]
    median_s = statistics.median(took_s)
    ratio = median_s / REFERENCE_S[arguments.vcpus]
    result = {
        "benchmark": "launch",
        "vcpus": arguments.vcpus,
        "took_s": [round(value, 3) for value in took_s],
        "median_s": round(median_s, 3),
        "reference_s": REFERENCE_S[arguments.vcpus],
        "ratio": round(ratio, 2),
        "limit_ratio": LIMIT_RATIO,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    return 0 if ratio <= LIMIT_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
