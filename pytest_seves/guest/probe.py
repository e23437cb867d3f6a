# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest on a host: ``probe("park", vcpus=3, rounds=100)`` launches it and returns the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .payload.image import probe_image
from .spec import GuestSpec
from .steps import Step, console

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch

    from .seam import Launcher

#: The report's first line, and its last.
BEGIN = " begin scenario="
END = r" end scenario=[^\n]*\n"
#: Of the TSC, without progress: 1 to 2 s on hardware.
_TIMEOUT_TICKS = 4_000_000_000
_BEAT_TICKS = 5_000_000
_BEGIN_S = 15.0
_END_S, _END_VCPU_S = 30.0, 0.5
#: APIC ids above 254 need x2APIC, and interrupts to them an IOMMU that remaps.
WITH_X2APIC: dict[str, Any] = {
    "machine": {"kernel-irqchip": "split"},
    "extra": ["-device", "intel-iommu,intremap=on,eim=on"],
}
_GUEST = frozenset(field.name for field in fields(GuestSpec))


class Probe:
    """Launches probe guests; what a suite asks for twice is launched once."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def __call__(
        self, scenario: str = "boot", *, steps: Sequence[Step] | None = None, **options: Any
    ) -> Launch:
        """Launch it and wait for its last line, or take other steps.

        :param options: fields of :class:`~pytest_seves.guest.spec.GuestSpec`, and of
            :func:`~pytest_seves.guest.payload.image.probe_image`.
        """
        guest = {name: value for name, value in options.items() if name in _GUEST}
        command = {name: value for name, value in options.items() if name not in _GUEST}
        image = probe_image(
            scenario, **{"timeout_ticks": _TIMEOUT_TICKS, "beat_ticks": _BEAT_TICKS, **command}
        )
        path = self._launcher.put(f"probe-{scenario}.bin", image)
        limit = _END_S + _END_VCPU_S * int(options.get("vcpus", 1))
        told = (console(BEGIN, timeout_s=_BEGIN_S), console(END, timeout_s=limit))
        taken = told if steps is None else steps
        return self._launcher(firmware=path, steps=taken, **guest)
