# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_IOEVENTFD and KVM_IRQFD: a guest's write that signals an eventfd, an eventfd that interrupts a guest.

Source: Linux virt/kvm/eventfd.c; virt/kvm/kvm_main.c __kvm_io_bus_write(); arch/x86/kvm/irq.c
kvm_arch_irqfd_allowed(), x86.c emulator_pio_in_out().
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..spec import kvm
from .irqchip import Source
from .memory import Refusal

if TYPE_CHECKING:
    from .kvm_vm import Vm
    from .supervisor import Call

_IOEVENTFD = struct.Struct("<QQIiI36x")  # datamatch, addr, len, fd, flags
_IRQFD = struct.Struct("<IIII16x")  # fd, gsi, flags, resamplefd
_LENGTHS = (0, 1, 2, 4, 8)
_ONE = (1).to_bytes(8, "little")


class EventFd:
    """Our copy of one of the VMM's eventfds.

    :ivar identity: the same for all copies of one eventfd, as the kernel numbers them.
    """

    def __init__(self, descriptor: int, identity: int) -> None:
        self.descriptor = descriptor
        self.identity = identity

    @classmethod
    def take(cls, descriptor: int) -> EventFd:
        """Own a descriptor; what eventfd_ctx_fdget() would say of it.

        :param descriptor: or -errno, if there is none.
        :raise Refusal: there is none, or it is no eventfd.
        """
        if descriptor < 0:
            raise Refusal(-descriptor)
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        if "eventfd-id" not in fields:
            os.close(descriptor)
            raise Refusal(errno.EINVAL)
        return cls(descriptor, int(fields["eventfd-id"]))

    def signal(self) -> None:
        """Add one, unless that would have to wait."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLOUT)
        if poller.poll(0):
            os.write(self.descriptor, _ONE)

    def drain(self) -> None:
        """Take the count, if there is one."""
        try:
            os.preadv(self.descriptor, [bytearray(8)], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the copy up."""
        os.close(self.descriptor)


class IoEventFd(NamedTuple):
    """A place that signals. `length` 0 is any; `datamatch` None is any value."""

    bus: int
    address: int
    length: int
    datamatch: int | None
    eventfd: EventFd

    def collides(self, other: IoEventFd) -> bool:
        """ioeventfd_check_collision(), of two at one address of one bus."""
        if not self.length or not other.length:
            return True
        alike = None in (self.datamatch, other.datamatch) or self.datamatch == other.datamatch
        return self.length == other.length and alike

    def matches(self, data: bytes) -> bool:
        """ioeventfd_in_range(), of a write at its address."""
        if not self.length:
            return True
        value = int.from_bytes(data, "little")
        return len(data) == self.length and self.datamatch in (None, value)


class IoEventFds:
    """Those of one VM. A bus is named by the flag that selects it; memory's by 0."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._at: dict[tuple[int, int], list[IoEventFd]] = {}

    # The VMM's side

    def request(self, call: Call) -> int | None:
        """KVM_IOEVENTFD. Taking one back does not look at its flags or length but to compare them."""
        raw = self._vm.supervisor.memory.read(call.argument, _IOEVENTFD.size)
        datamatch, address, length, number, flags = _IOEVENTFD.unpack(raw)
        bus = flags & kvm.KVM_IOEVENTFD_FLAG_PIO or flags & kvm.KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY
        matched = datamatch if flags & kvm.KVM_IOEVENTFD_FLAG_DATAMATCH else None
        taken_back = bool(flags & kvm.KVM_IOEVENTFD_FLAG_DEASSIGN)
        if not taken_back:
            if length not in _LENGTHS or address + length >= 1 << 64:
                return -errno.EINVAL
            if flags & ~kvm.KVM_IOEVENTFD_VALID_FLAG_MASK or (not length and matched is not None):
                return -errno.EINVAL

        def then(copies: list[int]) -> int:
            entry = IoEventFd(bus, address, length, matched, EventFd.take(copies[0]))
            return self._deassign(entry) if taken_back else self._assign(entry)

        return self._vm.supervisor.fetch(call, [number], then)

    def _assign(self, entry: IoEventFd) -> int:
        others = self._at.get(entry[:2], [])
        if any(entry.collides(other) for other in others):
            entry.eventfd.close()
            return -errno.EEXIST
        self._at[entry[:2]] = [*others, entry]
        return 0

    def _deassign(self, wanted: IoEventFd) -> int:
        wanted.eventfd.close()
        others = self._at.get(wanted[:2], [])
        for entry in others:
            if entry[:4] == wanted[:4] and entry.eventfd.identity == wanted.eventfd.identity:
                entry.eventfd.close()
                others.remove(entry)
                return 0
        return -errno.ENOENT

    def close(self) -> None:
        """The VM is gone."""
        for entry in (entry for entries in self._at.values() for entry in entries):
            entry.eventfd.close()
        self._at = {}

    # The guest's side

    def port_write(self, port: int, size: int, data: bytes) -> bool:
        """False for what is the VMM's. By OUTS, the first element decides, and others that miss are lost."""
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        hits = (self._write(kvm.KVM_IOEVENTFD_FLAG_PIO, port, piece) for piece in pieces)
        return next(hits, False) and (all(hits) or True)

    def mmio_write(self, gpa: int, data: bytes) -> bool:
        """False for what is the VMM's."""
        return self._write(0, gpa, data)

    def _write(self, bus: int, address: int, data: bytes) -> bool:
        for entry in self._at.get((bus, address), ()):
            if entry.matches(data):
                if self._vm.machine is not None:
                    self._vm.machine.show_memory()
                    self._vm.machine.trace.signalled()
                entry.eventfd.signal()
                return True
        return False


class IrqFd(NamedTuple):
    """An eventfd that interrupts; with `resample`, which is told of the EOI, by a level."""

    eventfd: EventFd
    gsi: int
    resample: EventFd | None


class IrqFds:
    """Those of one VM. They have an epoll of their own, which is ready when one of them is."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._all: dict[int, IrqFd] = {}
        self._epoll: select.epoll | None = None
        vm.irqchip.acknowledged = self._acknowledged
        if vm.supervisor.profile.irqfd_resampled_when_unmasked:
            vm.irqchip.resample = self._resample

    def request(self, call: Call) -> int | None:
        """KVM_IRQFD."""
        raw = self._vm.supervisor.memory.read(call.argument, _IRQFD.size)
        number, gsi, flags, resample_number = _IRQFD.unpack(raw)
        resampled = bool(flags & kvm.KVM_IRQFD_FLAG_RESAMPLE)
        if flags & ~(kvm.KVM_IRQFD_FLAG_DEASSIGN | kvm.KVM_IRQFD_FLAG_RESAMPLE):
            return -errno.EINVAL
        if flags & kvm.KVM_IRQFD_FLAG_DEASSIGN:
            return self._vm.supervisor.fetch(
                call, [_signed(number)], lambda copies: self._deassign(EventFd.take(copies[0]), gsi)
            )
        if not (self._vm.in_kernel_irqchip if resampled else self._vm.in_kernel_lapic):
            return -errno.EINVAL
        numbers = [_signed(number)] + [_signed(resample_number)] * resampled
        return self._vm.supervisor.fetch(call, numbers, lambda copies: self._assign(copies, gsi))

    def _assign(self, copies: list[int], gsi: int) -> int:
        owned: list[EventFd] = []
        try:
            for index, copy in enumerate(copies):
                owned.append(self._own(copy, copies[index + 1 :]))
            if any(other.eventfd.identity == owned[0].identity for other in self._all.values()):
                raise Refusal(errno.EBUSY)
        except Refusal:
            for eventfd in owned:
                eventfd.close()
            raise
        irqfd = IrqFd(owned[0], gsi, owned[1] if len(owned) > 1 else None)
        self._all[irqfd.eventfd.descriptor] = irqfd
        self.sweep()
        if self._epoll is None:
            self._epoll = select.epoll()
            self._vm.supervisor.watch(self._epoll.fileno(), self.sweep)
        self._epoll.register(irqfd.eventfd.descriptor, select.EPOLLIN | select.EPOLLET)
        for descriptor in self._signalled():  # before it was ours: it interrupts, and keeps its count
            self._inject(self._all[descriptor])
        return 0

    def _own(self, copy: int, rest: list[int]) -> EventFd:
        try:
            return EventFd.take(copy)
        except Refusal:
            for other in rest:
                if other >= 0:
                    os.close(other)
            raise

    def _deassign(self, wanted: EventFd, gsi: int) -> int:
        """No error if there is none; what it was signalled until now has interrupted, its count is taken."""
        wanted.close()
        self.sweep()
        for irqfd in list(self._all.values()):
            if irqfd.eventfd.identity == wanted.identity and irqfd.gsi == gsi:
                irqfd.eventfd.drain()
                self._drop(irqfd)
        return 0

    def _drop(self, irqfd: IrqFd) -> None:
        del self._all[irqfd.eventfd.descriptor]
        if self._epoll is not None:
            self._epoll.unregister(irqfd.eventfd.descriptor)
        irqfd.eventfd.close()
        if irqfd.resample is not None:
            irqfd.resample.close()
            if not any(self._resampled(irqfd.gsi)):
                self._vm.irqchip.set_line(irqfd.gsi, False, Source.RESAMPLE)

    def close(self) -> None:
        """The VM is gone."""
        for irqfd in list(self._all.values()):
            self._drop(irqfd)
        if self._epoll is not None:
            self._vm.supervisor.unwatch(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # To the guest

    def sweep(self) -> None:
        """Whatever was signalled until now interrupts, by the routes as they are."""
        for descriptor in self._signalled():
            irqfd = self._all[descriptor]
            irqfd.eventfd.drain()
            self._inject(irqfd)

    def _signalled(self) -> list[int]:
        return [descriptor for descriptor, _ in self._epoll.poll(0)] if self._epoll is not None else []

    def _inject(self, irqfd: IrqFd) -> None:
        """irqfd_inject(); a message has no second half."""
        if self._vm.machine is not None:
            self._vm.machine.will_look()
        if irqfd.resample is not None:
            self._vm.irqchip.set_line(irqfd.gsi, True, Source.RESAMPLE)
        else:
            self._vm.irqchip.set_line(irqfd.gsi, True)
            self._vm.irqchip.set_line(irqfd.gsi, False)

    # From the guest

    def _resampled(self, gsi: int) -> Iterator[EventFd]:
        return (
            irqfd.resample for irqfd in self._all.values() if irqfd.gsi == gsi and irqfd.resample is not None
        )

    def _acknowledged(self, gsi: int) -> None:
        """irqfd_resampler_ack(): the level falls, and whoever raised it may raise it again."""
        if any(self._resampled(gsi)):
            self._vm.irqchip.set_line(gsi, False, Source.RESAMPLE)
            self._resample(gsi)

    def _resample(self, gsi: int) -> bool:
        """kvm_notify_irqfd_resampler(): whether there is one to ask."""
        asked = list(self._resampled(gsi))
        if asked and self._vm.machine is not None:
            self._vm.machine.show_memory()
        for eventfd in asked:
            eventfd.signal()
        return bool(asked)


def _signed(number: int) -> int:
    """A descriptor's number, which these structures have without a sign."""
    return number - (1 << 32) if number >> 31 else number
