# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's own firmware, booted to its UEFI shell: ``shell(vcpus=2, then=RESET)``.

Its variables are in flash, in a copy that the VMM throws away (:mod:`pytest_seves.guest.firmware_flash`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .spec import HOST_VARIABLES, GuestSpec, mapped_memory
from .steps import Step, console, event, typed

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch

    from .seam import Launcher

PROMPT = "Shell>"
#: What BdsDxe says in a build without a shell.
NO_SHELL = "No bootable option or device was found"
#: Lines for the shell: UEFI Shell specification 2.2, section 5.3, "reset".
RESET, SHUT_DOWN = "reset", "reset -s"
#: From the reset vector to the prompt, which a countdown of 5 s precedes: what a guest that hangs costs.
_BOOT_S = 240.0
_END_S = 30.0


class FirmwareShell:
    """Launches guests that boot nothing but their firmware; the same guest is launched once."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def __call__(self, *, then: str = "", **options: Any) -> Launch:
        """Wait for the prompt, and type a line.

        :param then: a line after which the guest is reset or shut down.
        :param options: fields of :class:`~pytest_seves.guest.spec.GuestSpec`.
        """
        steps: list[Step] = [console(f"{PROMPT}|{NO_SHELL}", timeout_s=_BOOT_S)]
        if then:
            steps += [typed(then), event("SHUTDOWN", "RESET", timeout_s=_END_S)]
        guest = {
            "firmware_via": "pflash",
            "variables": HOST_VARIABLES,
            **mapped_memory(options.pop("machine", GuestSpec.machine), GuestSpec.memory_mib),
        }
        return self._launcher(**{**guest, "steps": steps, **options})
