# SPDX-License-Identifier: GPL-2.0-or-later
"""One named way to be wrong, of a VMM or of the model's kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .faults import Rule
from .spec import GuestSpec


@dataclass(frozen=True)
class Defect:
    """One way to be wrong.

    :param breaks: the requirements that turn red; any other is unharmed, or undecided where the
        launch no longer comes so far.
    """

    name: str
    what: str
    breaks: frozenset[str]
    rules: tuple[Rule, ...] = ()
    #: What the VMM answers wrongly over QMP (:mod:`pytest_seves.agent.qmp_sabotage`).
    qmp_rules: tuple[Rule, ...] = ()
    #: Machine options that the VMM takes and then ignores.
    ignores: frozenset[str] = frozenset()
    #: Devices that the VMM takes and then leaves out.
    ignores_devices: frozenset[str] = frozenset()
    #: True for a VMM that boots its usual firmware, whichever it was told to.
    ignores_firmware: bool = False
    #: Words that the VMM adds to the command line of a kernel.
    kernel_words: str = ""
    #: True for a VMM that leaves guests with a kernel without memory encryption.
    leaves_kernels_plain: bool = False
    #: Arguments that give the VMM a wrong default.
    arguments: tuple[str, ...] = ()
    #: Settings of the model's profile: the kernel is what is wrong, and only the model's can be.
    kernel: Mapping[str, int] = field(default_factory=dict)

    @property
    def culprit(self) -> str:
        """Who is wrong."""
        return "kernel" if self.kernel else "VMM"

    def heeded(self, spec: GuestSpec) -> GuestSpec:
        """What the VMM makes of what it was told."""
        if spec.kernel is not None:
            spec = self._kernel_of(spec)
        kept = [word for pair in _pairs(spec.extra) if not self._ignores(pair) for word in pair]
        return replace(
            spec,
            machine_options=tuple(o for o in spec.machine_options if o[0] not in self.ignores),
            firmware=None if self.ignores_firmware else spec.firmware,
            extra=(*kept, *self.arguments),
        )

    def _kernel_of(self, spec: GuestSpec) -> GuestSpec:
        if self.leaves_kernels_plain:
            spec = replace(spec, policy=None, kernel_hashes=False)
        return replace(spec, append=f"{spec.append} {self.kernel_words}".strip())

    def _ignores(self, pair: tuple[str, ...]) -> bool:
        return pair[0] == "-device" and pair[1].partition(",")[0] in self.ignores_devices


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Options with their values; a flag stands alone."""
    rest = list(words)
    while rest:
        size = 2 if len(rest) > 1 and not rest[1].startswith("-") else 1
        yield tuple(rest[:size])
        rest = rest[size:]
