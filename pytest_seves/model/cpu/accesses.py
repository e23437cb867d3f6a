# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses that leave the CPU: ports and what is not memory, for KVM's own devices or for the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import exits
from .nested_paging import C_BIT_MASK

if TYPE_CHECKING:
    from .machine import Machine

#: Where the engine has what is not memory: below 4 GiB page by page, above in the order of first use.
_MMIO_WINDOW, _HIGH_WINDOW = 0x60_0000_0000, 0x61_0000_0000


class Accesses:
    """Those of one VM."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._high: dict[int, int] = {}
        machine.engine.map_mmio(_MMIO_WINDOW, self._mmio_read_now, self._mmio_write_now)
        machine.engine.map_mmio(
            _HIGH_WINDOW,
            lambda offset, size: self._mmio_read_now(self._high_gpa(offset), size),
            lambda offset, size, value: self._mmio_write_now(self._high_gpa(offset), size, value),
        )

    def port_in(self, port: int, size: int, count: int) -> exits.Reading:
        """Read a port, of KVM's own devices or the VMM's."""
        data = self._machine.devices.port_read(port, size, count)
        if data is None:
            data = yield exits.PortIo(port, size, count, None)
            self._machine.trace.port_read(port, data)
        return data

    def port_out(self, port: int, size: int, data: bytes) -> exits.Handling:
        """Write a port."""
        if self._machine.devices.port_write(port, size, data):
            return
        if not self._machine.vm.ioeventfds.port_write(port, size, data):
            self._machine.trace.port_written(port, data)
            yield exits.PortIo(port, size, len(data) // size, data)

    def mmio_read(self, gpa: int, size: int) -> exits.Reading:
        """Read what is not memory, in pieces of at most 8 bytes."""
        out = b""
        while len(out) < size:
            at, length = gpa + len(out), min(size - len(out), 8)
            data = self._machine.devices.mmio_read(at, length)
            out += data if data is not None else (yield exits.Mmio(at, length, None))
        return out

    def mmio_write(self, gpa: int, data: bytes) -> exits.Handling:
        """Write what is not memory."""
        for done in range(0, len(data), 8):
            piece = data[done : done + 8]
            if self._machine.devices.mmio_write(gpa + done, piece):
                continue
            if not self._machine.vm.ioeventfds.mmio_write(gpa + done, piece):
                yield exits.Mmio(gpa + done, len(piece), piece)

    def map_mmio(self, gpa: int) -> None:
        """An instruction of a guest without SEV-ES accesses what is not memory: let the engine decode it.

        The page is mapped to a window whose accesses call us in the middle of the instruction.
        """
        page = gpa & -0x1000
        place = _MMIO_WINDOW + page
        if page >> 32:
            place = _HIGH_WINDOW + 0x1000 * self._high.setdefault(page, len(self._high))
        half = bool(page & C_BIT_MASK)  # of a plain guest, whose address this bit is a part of
        for private in (False, True) if self._machine.memory.encrypted else (half,):
            self._machine.memory.paging.map(private, page, place, writable=True, executable=True)

    def _high_gpa(self, offset: int) -> int:
        return list(self._high)[offset >> 12] + (offset & 0xFFF)

    def _mmio_read_now(self, gpa: int, size: int) -> int:
        data = self._complete(self.mmio_read(gpa, size))
        return int.from_bytes(data or b"", "little")

    def _mmio_write_now(self, gpa: int, size: int, value: int) -> None:
        self._complete(self.mmio_write(gpa, (value & (1 << 8 * size) - 1).to_bytes(size, "little")))

    def _complete(self, handling: exits.Reading | exits.Handling) -> bytes | None:
        """Drive a handling to its end here and now, serving the VMM meanwhile."""
        processor = self._machine.current
        self._machine.in_instruction = True
        try:
            reason = next(handling)
            while True:
                self._machine.leave(processor, reason)
                if not self._machine.vm.supervisor.serve_until(processor.vcpu):
                    return None
                self._machine.look()
                reason = handling.send(reason.result(processor.vcpu.run))
        except StopIteration as end:
            result: bytes | None = end.value
            return result
        finally:
            self._machine.in_instruction = False
