# SPDX-License-Identifier: GPL-2.0-or-later
"""The two 8259A interrupt controllers as KVM has them in the kernel.

Source: Intel 8259A data sheet; Linux arch/x86/kvm/i8259.c; struct kvm_pic_state.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_CASCADE = 2
_STATE = struct.Struct("<16B")
_SLAVE_PORTS = (0xA0, 0xA1)
_EDGE_ONLY = (0xF8, 0xDE)  # the lines of each that ELCR can make level triggered
PORTS = frozenset({0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1})


class Chip:
    """One 8259A, by the fields of struct kvm_pic_state."""

    def __init__(self, elcr_mask: int) -> None:
        self.last_irr = self.irr = self.imr = self.isr = 0
        self.priority_add = self.irq_base = 0
        self.read_isr = self.poll = self.special_mask = 0
        self.init_state = self.auto_eoi = self.rotate_on_auto_eoi = 0
        self.special_fully_nested = self.init4 = self.elcr = 0
        self.elcr_mask = elcr_mask

    def state(self) -> bytes:
        """struct kvm_pic_state."""
        return _STATE.pack(*(int(value) for value in vars(self).values()))

    def restore(self, raw: bytes) -> None:
        """Take one over."""
        for name, value in zip(vars(self), _STATE.unpack_from(raw), strict=True):
            setattr(self, name, value)

    def set_line(self, line: int, level: bool) -> None:
        """A line is raised or lowered."""
        bit = 1 << line
        if not level:
            self.last_irr &= ~bit
            if self.elcr & bit:
                self.irr &= ~bit
        elif self.elcr & bit or not self.last_irr & bit:
            self.irr |= bit
            self.last_irr |= bit

    def _priority(self, bits: int) -> int:
        """How far the highest of these is from the top; 8 for none."""
        return next((n for n in range(8) if bits >> (n + self.priority_add & 7) & 1), 8)

    def wanted(self, cascade: bool) -> int | None:
        """The line that would be served next."""
        priority = self._priority(self.irr & ~self.imr)
        mask = self.isr & ~self.imr if self.special_mask else self.isr
        if self.special_fully_nested and cascade:
            mask &= ~(1 << _CASCADE)
        return None if priority == 8 or priority >= self._priority(mask) else priority + self.priority_add & 7

    def acknowledge(self, line: int) -> None:
        """The CPU takes this one."""
        if not self.auto_eoi:
            self.isr |= 1 << line
        elif self.rotate_on_auto_eoi:
            self.priority_add = line + 1 & 7
        if not self.elcr & 1 << line:
            self.irr &= ~(1 << line)

    def command(self, value: int) -> None:
        """A write of the first port."""
        if value & 0x10:  # ICW1
            self.irr &= self.elcr
            self.last_irr = self.imr = self.isr = self.priority_add = 0
            self.read_isr = self.special_mask = self.special_fully_nested = 0
            self.auto_eoi = self.rotate_on_auto_eoi = 0
            self.init_state, self.init4 = 1, value & 1
        elif value & 0x08:  # OCW3
            if value & 4:
                self.poll = 1
            if value & 2:
                self.read_isr = value & 1
            if value & 0x40:
                self.special_mask = value >> 5 & 1
        else:
            self._end(value >> 5, value & 7)

    def _end(self, kind: int, line: int) -> None:
        """OCW2."""
        if kind in (0, 4):
            self.rotate_on_auto_eoi = kind >> 2
        elif kind in (1, 5):  # non-specific EOI
            priority = self._priority(self.isr)
            if priority != 8:
                served = priority + self.priority_add & 7
                self.isr &= ~(1 << served)
                self.priority_add = served + 1 & 7 if kind == 5 else self.priority_add
        elif kind in (3, 7):  # specific EOI
            self.isr &= ~(1 << line)
            self.priority_add = line + 1 & 7 if kind == 7 else self.priority_add
        elif kind == 6:
            self.priority_add = line + 1 & 7

    def data(self, value: int) -> None:
        """A write of the second port."""
        if self.init_state == 1:
            self.irq_base, self.init_state = value & 0xF8, 2
        elif self.init_state == 2:
            self.init_state = 3 if self.init4 else 0
        elif self.init_state == 3:
            self.special_fully_nested, self.auto_eoi = value >> 4 & 1, value >> 1 & 1
            self.init_state = 0
        else:
            self.imr = value


class Pics:
    """Master and slave of one VM.

    :param acknowledged: told a line, 0 to 15, whose interrupt is at its end (pic_clear_isr()).
    :ivar pending: the INTR output.
    """

    def __init__(self, acknowledged: Callable[[int], None] = lambda line: None) -> None:
        self._acknowledged = acknowledged
        self.chips = tuple(Chip(mask) for mask in _EDGE_ONLY)
        self.pending = False

    def set_line(self, line: int, level: bool) -> None:
        """Lines 0 to 15."""
        chip, bit = divmod(line, 8)
        self.chips[chip].set_line(bit, level)
        self._cascade()

    def _cascade(self) -> None:
        """The slave's output is the master's line 2."""
        master, slave = self.chips
        master.set_line(_CASCADE, False)
        if slave.wanted(cascade=False) is not None:
            master.set_line(_CASCADE, True)
        else:
            master.irr &= ~(1 << _CASCADE)
        self.pending = master.wanted(cascade=True) is not None

    def restore(self, chip: int, raw: bytes) -> None:
        """Take a struct kvm_pic_state over."""
        self.chips[chip].restore(raw)
        self._cascade()

    def acknowledge(self) -> int:
        """The vector that an INTA cycle gives; line 7's if what asked is gone."""
        master, slave = self.chips
        line = master.wanted(cascade=True)
        if line is None:
            return master.irq_base + 7
        self._take(0, line)
        vector = master.irq_base + line
        if line == _CASCADE:
            behind = slave.wanted(cascade=False)
            vector = slave.irq_base + (7 if behind is None else behind)
            if behind is not None:
                self._take(1, behind)
        self._cascade()
        return vector

    def _take(self, number: int, line: int) -> None:
        self.chips[number].acknowledge(line)
        if self.chips[number].auto_eoi:
            self._acknowledged(8 * number + line)

    def read(self, port: int) -> int:
        """A byte from one of PORTS."""
        if port in (0x4D0, 0x4D1):
            return self.chips[port & 1].elcr
        chip = self.chips[port in _SLAVE_PORTS]
        if chip.poll:
            chip.poll = 0
            line = chip.wanted(cascade=chip is self.chips[0])
            if line is None:
                return 0x07
            self._take(self.chips.index(chip), line)
            self._cascade()
            return 0x80 | line
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def write(self, port: int, value: int) -> None:
        """A byte to one of PORTS."""
        if port in (0x4D0, 0x4D1):
            chip = self.chips[port & 1]
            chip.elcr = value & chip.elcr_mask
            return
        chip = self.chips[port in _SLAVE_PORTS]
        if port & 1:
            chip.data(value)
        else:
            self._command(chip, value)
        self._cascade()

    def _command(self, chip: Chip, value: int) -> None:
        """An EOI ends what it takes out of service, a reset what waits by an edge."""
        served, edges = chip.isr, chip.irr & ~chip.elcr
        chip.command(value)
        ended = edges if value & 0x10 else served & ~chip.isr
        for line in range(8):
            if ended >> line & 1:
                self._acknowledged(8 * self.chips.index(chip) + line)
