# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests: names in a specification become files on the host, and a factory of guests that report.

``linux(vcpus=4, cycles=10)`` boots the host's kernel with an init of ours (:mod:`pytest_seves.guest.linux`).
"""

from __future__ import annotations

import base64
import gzip
import lzma
import zlib
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import RigError, Unsupported

from .linux.initramfs import probe_initramfs
from .spec import HOST_KERNEL, OPTIONAL_VARIABLES, PROBE_INITRD, GuestSpec, mapped_memory
from .steps import Step, console, event

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.host.target import Target

    from .seam import Launcher

#: The report's last line.
END = r"SEVES1 n=\d+ end scenario=linux [^\n]*\n"
#: The kernel's own console is where the report will be.
COMMAND_LINE = "console=ttyS0"
_DECOMPRESS = {".xz": lzma.decompress, ".gz": gzip.decompress}
#: From the reset vector to the end of the report: what a guest that hangs costs.
_BOOT_S, _CYCLE_S = 180.0, 2.0
_OFF_S = 30.0
_MEMORY_MIB = 512


def host_kernel(target: Target) -> str:
    """Path of the kernel that guests on this host boot.

    :raise Unsupported: the lab file names none, and the host's own cannot be read.
    """
    kernel = target.facts.guest_kernel
    if kernel.sha256 is None or kernel.path is None:
        raise Unsupported(
            f"{target.name}: no kernel for Linux guests: the lab file has no [guest] kernel, and"
            f" {kernel.path or 'the one of this host'}: {kernel.error}"
        )
    return kernel.path


def host_initramfs(target: Target) -> bytes:
    """Our initramfs, with the msr driver of that kernel where the host has it.

    :raise RigError: the driver is there, and cannot be read or decompressed.
    """
    path = target.facts.guest_kernel.msr_module
    if path is None:
        return probe_initramfs()
    told = target.client.call("file.read", {"path": path})
    module = base64.b64decode(told["data_b64"])
    decompress = _DECOMPRESS.get(path[path.rfind(".") :], bytes)
    try:
        return probe_initramfs(decompress(module))
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise RigError(
            f"{target.name}: {path}: wanted a kernel module to decompress; got: {error}"
        ) from error


class Linux:
    """Launches Linux guests that say what their kernel made of them."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def __call__(
        self, *, cycles: int = 0, then: str = "power-off", append: str = "", **options: Any
    ) -> Launch:
        """Boot one and wait until it has reported and ended.

        :param cycles: how often each AP goes offline and comes online again.
        :param then: ``power-off``, ``reboot``, or ``stay``.
        :param append: further words of the kernel's command line.
        :param options: fields of :class:`~pytest_seves.guest.spec.GuestSpec`.
        """
        limit = _BOOT_S + _CYCLE_S * cycles * int(options.get("vcpus", 1))
        words = [COMMAND_LINE, f"seves_cycles={cycles}", f"seves_then={then}", *append.split()]
        steps: list[Step] = [console(END, timeout_s=limit)]
        if then != "stay":
            steps.append(event("SHUTDOWN", "RESET", timeout_s=_OFF_S))
        if then == "reboot" and options.get("policy", GuestSpec.policy) is None:
            steps.append(console(END, timeout_s=limit, fresh=True))  # it can, and boots again
        guest: dict[str, Any] = {
            # The PC machine: OVMF of 2022 finds no device of q35 under SEV-ES.
            **mapped_memory("pc", _MEMORY_MIB),
            "firmware_via": "pflash",
            "variables": OPTIONAL_VARIABLES,
            "kernel": HOST_KERNEL,
            "initrd": PROBE_INITRD,
            "append": " ".join(words),
            "steps": steps,
        }
        return self._launcher(**{**guest, **options})
