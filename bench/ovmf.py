# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's OVMF on the model, under the machine's QEMU: boots to the UEFI shell, what they take.

A boot counts from QEMU's start to the shell's prompt on the serial port. Boots of one configuration must all
reach it, with the same exits. QEMU's RTC goes by the clock on the wall: a boot that reads there that an
update of the time is in progress is compared up to there (``rtc_updates`` of the boots). Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_seves.model import cpuid
from pytest_seves.model.cpu.trace import CHECKPOINT
from pytest_seves.model.host import ModelHost

PROFILE = "linux-6.1"
PROMPT = b"Shell>"
POLICIES = {"plain": None, "sev": 0x1, "es": 0x5}
LIMIT_S, GOAL_S = 36.0, 15.0
_MEMORY = 256
_BIOS = "/usr/share/ovmf/OVMF.fd"
_FLASH = ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd")
#: Debian 12's OVMF loses RBP in its #VC path: silent as SEV-ES on q35, where it finds no PCI device. And with
#: -bios it restores the variables, but not the area beside them that fault-tolerant writes read: zeros in a
#: plain guest; noise in an encrypted one, another in each launch, and a fault in some.
_VERSION = "2022.11"
_EXCEPTION = b"!!!! X64 Exception Type"
_LOST_RBP = "RBP lost in the #VC path: no PCI device on q35, so no console"
_NOISE = "with -bios the work space of fault-tolerant writes is read before it was ever written"


@dataclass(frozen=True)
class Setup:
    """One configuration."""

    kind: str
    machine: str
    vcpus: int
    flash: bool

    @property
    def name(self) -> str:
        """Such as ``es-pc-1-bios``."""
        return f"{self.kind}-{self.machine}-{self.vcpus}-{'pflash' if self.flash else 'bios'}"

    @property
    def reads_noise(self) -> bool:
        """Whether it goes by memory that was never written, so that each launch may go another way."""
        return self.kind != "plain" and not self.flash


SETUPS = (
    *(Setup("es", "pc", vcpus, False) for vcpus in (1, 2, 4)),
    Setup("es", "pc", 1, True),
    Setup("es", "q35", 1, False),
    *(Setup(kind, machine, 1, False) for kind in ("sev", "plain") for machine in ("pc", "q35")),
    *(Setup("plain", "pc", vcpus, False) for vcpus in (2, 4)),
    *(Setup(kind, "pc", 1, True) for kind in ("sev", "plain")),
)


def qemu(setup: Setup, binary: str, firmware: str, flash: tuple[str, str], directory: Path) -> str:
    """The command of one launch, as a shell's; `flash` is code and variables."""
    ebx = cpuid.published_encryption_ebx()
    machine = f"{setup.machine},smm=off,memory-backend=ram"
    values = ["-object", f"memory-backend-memfd,id=ram,size={_MEMORY}M,share=on", "-m", str(_MEMORY)]
    values += [
        "-nodefaults",
        "-display",
        "none",
        "-no-user-config",
        "-accel",
        "kvm",
        "-cpu",
        "EPYC-v3",
        "-monitor",
        "none",
    ]
    values += ["-smp", str(setup.vcpus), "-serial", f"pipe:{directory}/console", "-rtc", "base=2026-01-01"]
    policy = POLICIES[setup.kind]
    if policy is not None:
        machine += ",confidential-guest-support=sev0"
        c_bit = f"cbitpos={ebx & 0x3F},reduced-phys-bits={ebx >> 6 & 0x3F}"
        values += ["-object", f"sev-guest,id=sev0,policy={policy:#x},{c_bit}"]
    if setup.flash:
        variables = directory / "variables.fd"
        variables.write_bytes(Path(flash[1]).read_bytes())
        for unit, file, readonly in ((0, flash[0], "on"), (1, variables, "off")):
            values += ["-drive", f"if=pflash,unit={unit},format=raw,file={file},readonly={readonly}"]
    else:
        values += ["-bios", firmware]
    return shlex.join(["exec", binary, *values, "-machine", machine])


def boot(
    host: ModelHost,
    setup: Setup,
    *,
    binary: str,
    firmware: str,
    deadline_s: float,
    flash: tuple[str, str] = _FLASH,
) -> dict[str, Any]:
    """One boot: seconds, CPU seconds, whether the prompt came, and the model's account of it."""
    log = host.directory / "guests.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="seves-bench-") as name:
        directory = Path(name)
        for end in ("in", "out"):  # both, or QEMU takes `console` for one pipe in two directions
            os.mkfifo(directory / f"console.{end}")
        console = os.open(directory / "console.out", os.O_RDONLY | os.O_NONBLOCK)
        start = "import sys; from pytest_seves.model.session import main; main(sys.argv[1:])"
        arguments = [str(host.directory), PROFILE, str(cpuid.published_encryption_ebx())]
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments],
            env={**os.environ, "SSH_ORIGINAL_COMMAND": qemu(setup, binary, firmware, flash, directory)},
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[1],
        )
        try:
            text = _read_until_prompt(process, console, started + deadline_s)
            seconds = time.monotonic() - started
        finally:
            process.terminate()
            process.wait()
            os.close(console)
    account = _account(log, before)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    said = {"shell": PROMPT in text, "said": len(text), "exception": _EXCEPTION in text}
    return {"seconds": seconds, "cpu_s": cpu, **said, **account}


def _read_until_prompt(process: subprocess.Popen[bytes], console: int, until: float) -> bytes:
    """What the guest said, to its prompt if that comes in time and QEMU lives; wakes with each piece."""
    text = b""
    ended = os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(console, select.POLLIN)
    try:
        while PROMPT not in text and (left := until - time.monotonic()) > 0:
            ready = dict(poller.poll(left * 1000))
            if ready.get(console, 0) & select.POLLIN:
                text += os.read(console, 1 << 16)
            elif ready:  # QEMU is gone, or has closed its console
                break
    finally:
        os.close(ended)
    return text


def _account(log: Path, before: int) -> dict[str, Any]:
    """The line that the model writes when the guest is gone.

    :raise SystemExit: it does not come.
    """
    until = time.monotonic() + 10
    while time.monotonic() < until:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) > before:
            account: dict[str, Any] = json.loads(lines[-1])
            return account
        time.sleep(0.01)
    sys.exit(f"{log}: no account of the guest; see model.log beside it")


def same_exits(boots: list[dict[str, Any]]) -> bool:
    """Whether the hashes agree as far as each pair of boots can be compared."""
    longest = max((boot["checkpoints"] for boot in boots), key=len)
    return all(boot["checkpoints"] == longest[: len(boot["checkpoints"])] for boot in boots)


def known_bug(setup: Setup, boots: list[dict[str, Any]], version: str) -> str | None:
    """What the guest itself does wrong, by the symptoms of all boots that did not reach the shell."""
    lost = [boot for boot in boots if not boot["shell"]]
    if not lost or _VERSION not in version:
        return None
    if (setup.kind, setup.machine) == ("es", "q35") and not any(boot["said"] for boot in boots):
        return _LOST_RBP
    if setup.reads_noise and all(boot["exception"] for boot in lost):
        return _NOISE
    return None


def summary(setup: Setup, boots: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """One configuration's figures and verdict."""
    reached = sum(boot["shell"] for boot in boots)
    compared = [len(boot["checkpoints"]) for boot in boots]
    out: dict[str, Any] = {
        "boots": len(boots),
        "shell": reached,
        "same_exits": same_exits(boots),
        "compared_exits": [CHECKPOINT * count for count in (min(compared), max(compared))],
        "rtc_updates": sum(boot["at_rtc_update"] is not None for boot in boots),
        "median_s": round(statistics.median(boot["seconds"] for boot in boots), 1),
        "slowest_s": round(max(boot["seconds"] for boot in boots), 1),
        "cpu_s": round(statistics.median(boot["cpu_s"] for boot in boots), 1),
        "exits": boots[-1]["exits"],
        "vmgexits": boots[-1]["counts"].get("0x81", 0),
        "guest_s": round(boots[-1]["guest_time_ns"] / 1e9, 1),
    }
    bug = known_bug(setup, boots, version)
    if bug is not None:
        out["known_guest_bug"] = bug
    out["ok"] = (out["same_exits"] or setup.reads_noise) and (reached == len(boots) or bug is not None)
    return out


def firmware_version() -> str:
    """The package's, empty where dpkg does not know."""
    asked = ["dpkg-query", "-W", "-f", "${Version}", "ovmf"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def main() -> int:
    """Run, print; 1 when a boot failed, two were not the same, or SEV-ES is past its limit."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--boots", type=int, default=2, help="of each configuration")
    parser.add_argument("--only", default="", help="configurations whose names begin with it")
    parser.add_argument("--deadline", type=float, default=180)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--firmware", default=_BIOS, help="for -bios")
    parser.add_argument("--flash", nargs=2, default=_FLASH, metavar=("CODE", "VARIABLES"), help="for pflash")
    parser.add_argument("--version", default=firmware_version(), help="of the firmware")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with ModelHost.start(PROFILE) as host:
        for setup in SETUPS:
            if setup.name.startswith(options.only):
                arguments = {"binary": options.qemu, "firmware": options.firmware, "flash": options.flash}
                boots = [
                    boot(host, setup, deadline_s=options.deadline, **arguments) for _ in range(options.boots)
                ]
                results[setup.name] = summary(setup, boots, options.version)
                print(setup.name, results[setup.name], file=sys.stderr, flush=True)
    first = results.get("es-pc-1-bios")
    result = {
        "benchmark": "ovmf",
        "firmware": options.version,
        "limit_s": LIMIT_S,
        "goal_s": GOAL_S,
        "configurations": results,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    late = first is not None and first["median_s"] > LIMIT_S
    return 1 if late or not all(entry["ok"] for entry in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
