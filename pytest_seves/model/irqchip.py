# SPDX-License-Identifier: GPL-2.0-or-later
"""The interrupt controllers and the timer that KVM has in the kernel for one VM, and where each GSI leads.

Source: Linux arch/x86/kvm/irq_comm.c, virt/kvm/irqchip.c; struct kvm_irq_routing.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple

from .cpu.ioapic import PINS, Ioapic, Message
from .cpu.pic import Pics
from .cpu.pit import Pit

PIC_MASTER, PIC_SLAVE, IOAPIC = 0, 1, 2
_CHIP_SIZE = 512
_TO_CHIP, _TO_MSI = 1, 2
_LINES = (8, 8, PINS)
_LIMIT = 4096  # KVM_MAX_IRQ_ROUTES
_ENTRY = struct.Struct("<IIII 3I 20x")


class Source(Enum):
    """Who holds a pin up, by KVM's numbers: a pin is up while one of them does, whatever the GSI."""

    USERSPACE = 0
    RESAMPLE = 1
    PIT = 2


class Route(NamedTuple):
    """One way of a GSI: a controller's pin, or a message (address, data) with `chip` None."""

    chip: int | None
    pin: int = 0
    address: int = 0
    data: int = 0


def message_of(address: int, data: int) -> Message:
    """A message-signalled interrupt; in x2APIC form the destination goes on in the upper half."""
    destination = address >> 12 & 0xFF | address >> 32 & 0xFFFFFF00
    return Message(data & 0xFF, data >> 8 & 7, destination, bool(address >> 2 & 1), bool(data >> 15 & 1))


class Irqchip:
    """One VM's. Without KVM_CREATE_IRQCHIP only its routes are used.

    :ivar deliver: what brings a message to the local APICs, and tells how many took it.
    :ivar acknowledged: told the GSI of a pin whose interrupt is at its end.
    :ivar resample: asks those who raise a GSI by a level whether they still do; False if there are none.
    """

    def __init__(self) -> None:
        self.deliver: Callable[[Message], int] = lambda message: 0
        self.acknowledged: Callable[[int], None] = lambda gsi: None
        self.resample: Callable[[int], bool] = lambda gsi: False
        self.pics = Pics(lambda line: self._acknowledge(line // 8, line % 8))
        self.ioapic = Ioapic(self._deliver, partial(self._acknowledge, IOAPIC), self._resample_pin)
        self.pit = Pit()
        self._routes: dict[int, list[Route]] = {}
        self._gsi_of: dict[tuple[int, int], int] = {}
        self._levels: dict[tuple[int, int], set[Source]] = {}

    def _deliver(self, message: Message) -> int:
        return self.deliver(message)

    def _acknowledge(self, chip: int, pin: int) -> None:
        """kvm_notify_acked_irq()."""
        gsi = self._gsi_of.get((chip, pin))
        if gsi is not None:
            self.acknowledged(gsi)

    def _resample_pin(self, pin: int) -> bool:
        gsi = self._gsi_of.get((IOAPIC, pin))
        return gsi is not None and self.resample(gsi)

    def use_default_routes(self) -> None:
        """KVM_CREATE_IRQCHIP: both kinds of controllers, each pin of the IOAPIC by its own number."""
        for gsi in range(PINS):
            ways = [Route(IOAPIC, gsi)]
            if gsi < 16:
                ways.insert(0, Route(gsi // 8, gsi % 8))
            self._routes[gsi] = ways
        self._map()

    def _map(self) -> None:
        ways = ((way, gsi) for gsi, ways in self._routes.items() for way in ways)
        self._gsi_of = {(way.chip, way.pin): gsi for way, gsi in ways if way.chip is not None}

    def set_routes(self, raw: bytes) -> int:
        """The entries of KVM_SET_GSI_ROUTING, all anew; 0 or -errno."""
        routes: dict[int, list[Route]] = {}
        for gsi, kind, _, _, one, two, three in _ENTRY.iter_unpack(raw):
            if kind == _TO_CHIP and one <= IOAPIC and two < _LINES[one]:
                routes.setdefault(gsi, []).append(Route(one, two))
            elif kind == _TO_MSI:
                routes.setdefault(gsi, []).append(Route(None, 0, two << 32 | one, three))
            else:
                return -errno.EINVAL
            if gsi >= _LIMIT:
                return -errno.EINVAL
        self._routes = routes
        self._map()
        return 0

    def set_line(self, gsi: int, level: bool, source: Source = Source.USERSPACE) -> int:
        """kvm_set_irq(): how many took it, 0 if it merged with one under way, -1 if nobody did."""
        results = [self._signal(route, level, source) for route in self._routes.get(gsi, ())]
        taken = [result for result in results if result >= 0]
        return sum(taken) if taken else -1

    def _signal(self, route: Route, level: bool, source: Source) -> int:
        if route.chip is None:
            return self.deliver(message_of(route.address, route.data)) if level else -1
        holders = self._levels.setdefault((route.chip, route.pin), set())
        (holders.add if level else holders.discard)(source)
        if route.chip == IOAPIC:
            return self.ioapic.set_line(route.pin, bool(holders))
        self.pics.set_line(8 * route.chip + route.pin, bool(holders))
        return 1

    def tick(self, now_ns: int) -> None:
        """Guest time has come to `now_ns`: the timer's interrupt is a pulse."""
        if self.pit.tick(now_ns):
            self.set_line(0, True, Source.PIT)
            self.set_line(0, False, Source.PIT)

    def chip_state(self, chip: int) -> bytes:
        """The union in struct kvm_irqchip."""
        raw = self.ioapic.state() if chip == IOAPIC else self.pics.chips[chip].state()
        return raw.ljust(_CHIP_SIZE, b"\0")

    def restore_chip(self, chip: int, raw: bytes) -> None:
        """Take one over."""
        if chip == IOAPIC:
            self.ioapic.restore(raw)
        else:
            self.pics.restore(chip, raw[:16])
