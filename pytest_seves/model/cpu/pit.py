# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254 timer as KVM has it in the kernel, in guest time: channel 0 interrupts, channel 2 is at port 0x61.

Source: Intel 8254 data sheet; Linux arch/x86/kvm/i8254.c; struct kvm_pit_state2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HZ = 1_193_182
_NS = 1_000_000_000
PORTS = frozenset({0x40, 0x41, 0x42, 0x43, 0x61})
_LOW, _HIGH, _BOTH, _SECOND = 1, 2, 3, 4
_PERIODIC = (2, 3)
_ONCE = (0, 1, 4)
_SPEAKER = 2
_UNSET = 0xFF
_CHANNEL = struct.Struct("<IH10Bq")
_STATE_SIZE = 112


@dataclass(slots=True)
class Channel:
    """One counter; the fields of struct kvm_pit_channel_state in its order, `loaded_ns` in guest time."""

    count: int = 0x10000
    latched: int = 0
    count_latched: int = 0
    status_latched: int = 0
    status: int = 0
    read_state: int = 0
    write_state: int = 0
    write_latch: int = 0
    access: int = 0
    mode: int = _UNSET
    bcd: int = 0
    gate: int = 1
    loaded_ns: int = 0

    def state(self) -> bytes:
        """struct kvm_pit_channel_state."""
        return _CHANNEL.pack(*(getattr(self, name) for name in self.__slots__))

    def load(self, value: int, now_ns: int) -> None:
        """Start to count down from here; 0 is 65536."""
        self.count, self.loaded_ns = value or 0x10000, now_ns

    def _ticks(self, now_ns: int) -> int:
        return (now_ns - self.loaded_ns) * HZ // _NS

    def value(self, now_ns: int) -> int:
        """What the counter shows."""
        ticks = self._ticks(now_ns)
        if self.mode == 3:
            return self.count - 2 * ticks % self.count
        if self.mode == 2:
            return self.count - ticks % self.count
        return self.count - ticks & 0xFFFF

    def output(self, now_ns: int) -> bool:
        """The level of its OUT pin."""
        ticks = self._ticks(now_ns)
        if self.mode == 2:
            return bool(ticks) and ticks % self.count == 0
        if self.mode == 3:
            return ticks % self.count < self.count + 1 >> 1
        if self.mode == 4:
            return ticks == self.count
        return ticks >= self.count if self.mode in (0, 1) else False

    def write(self, value: int, now_ns: int) -> bool:
        """A byte of the count; whether it is whole now."""
        if self.access == _BOTH and self.write_state != _SECOND:
            self.write_latch, self.write_state = value, _SECOND
            return False
        if self.access == _BOTH:
            self.write_state = _BOTH
            value = self.write_latch | value << 8
        elif self.access == _HIGH:
            value <<= 8
        self.load(value, now_ns)
        return True

    def read(self, now_ns: int) -> int:
        """The next byte that its port gives."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        if self.count_latched:
            state, self.count_latched = self.count_latched, _SECOND if self.count_latched == _BOTH else 0
            return self.latched >> (8 if state in (_HIGH, _SECOND) else 0) & 0xFF
        value, state = self.value(now_ns), self.read_state
        if state in (_BOTH, _SECOND):
            self.read_state = _SECOND if state == _BOTH else _BOTH
        return value >> (8 if state in (_HIGH, _SECOND) else 0) & 0xFF

    def latch(self, now_ns: int) -> None:
        """Keep the count until it is read."""
        if not self.count_latched:
            self.latched, self.count_latched = self.value(now_ns) & 0xFFFF, self.access

    def latch_status(self, now_ns: int) -> None:
        """Keep the status until it is read."""
        if not self.status_latched:
            level = self.output(now_ns) << 7
            self.status, self.status_latched = level | self.access << 4 | self.mode << 1 | self.bcd, 1


class Pit:
    """One VM's.

    :ivar deadline_ns: when channel 0 raises its interrupt next; None while it does not count.
    """

    def __init__(self) -> None:
        self.channels = [Channel(), Channel(), Channel(gate=0)]
        self.deadline_ns: int | None = None
        self._speaker = 0

    def read(self, port: int, now_ns: int) -> int:
        """A byte from one of PORTS."""
        if port == 0x61:
            channel = self.channels[2]
            refresh = now_ns // 15_000 & 1
            level = channel.output(now_ns)
            return self._speaker << 1 | channel.gate | level << 5 | refresh << 4
        return 0 if port == 0x43 else self.channels[port & 3].read(now_ns)

    def write(self, port: int, value: int, now_ns: int) -> None:
        """A byte to one of PORTS."""
        if port == 0x61:
            self._speaker = value >> 1 & 1
            self._set_gate(value & 1, now_ns)
        elif port == 0x43:
            self._control(value, now_ns)
        elif self.channels[port & 3].write(value, now_ns) and port == 0x40:
            self._arm(now_ns)

    def _set_gate(self, gate: int, now_ns: int) -> None:
        channel = self.channels[2]
        if gate and not channel.gate and channel.mode in (1, 2, 3, 5):
            channel.loaded_ns = now_ns
        channel.gate = gate

    def _control(self, value: int, now_ns: int) -> None:
        index, access = value >> 6, value >> 4 & 3
        if index == 3:  # read back
            for number, channel in enumerate(self.channels):
                if value >> number + 1 & 1:
                    if not value & 0x20:
                        channel.latch(now_ns)
                    if not value & 0x10:
                        channel.latch_status(now_ns)
        elif not access:
            self.channels[index].latch(now_ns)
        else:
            channel = self.channels[index]
            channel.access = channel.read_state = channel.write_state = access
            mode = value >> 1 & 7
            channel.mode = mode - 4 if mode > 5 else mode
            channel.bcd = value & 1

    def _arm(self, now_ns: int) -> None:
        channel = self.channels[0]
        counts = channel.mode in (*_PERIODIC, *_ONCE)
        self.deadline_ns = now_ns + channel.count * _NS // HZ if counts else None

    def tick(self, now_ns: int) -> bool:
        """Whether channel 0's interrupt is due; ticks that were missed are one."""
        if self.deadline_ns is None or now_ns < self.deadline_ns:
            return False
        channel = self.channels[0]
        if channel.mode in _PERIODIC:
            period = max(channel.count * _NS // HZ, 1)
            self.deadline_ns += ((now_ns - self.deadline_ns) // period + 1) * period
        else:
            self.deadline_ns = None
        return True

    def state(self) -> bytes:
        """struct kvm_pit_state2."""
        return b"".join(channel.state() for channel in self.channels).ljust(_STATE_SIZE, b"\0")

    def restore(self, raw: bytes, now_ns: int) -> None:
        """Take a struct kvm_pit_state2 over; channel 0 starts anew, as it does in KVM."""
        for index in range(3):
            values = _CHANNEL.unpack_from(raw, index * _CHANNEL.size)
            self.channels[index] = Channel(*values)
        self.channels[0].loaded_ns = now_ns
        self._arm(now_ns)
