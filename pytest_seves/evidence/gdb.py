# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversation with a VMM's gdbstub as the agent overheard it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_seves.spec.gdb import PacketError, PacketReader


@dataclass(frozen=True)
class GdbTranscript:
    """Packets with their answers in order; `nonsense` is what the stub said that is no packet."""

    exchanges: tuple[tuple[str, str | None], ...] = ()
    nonsense: str = ""

    @classmethod
    def from_chunks(cls, chunks: Iterable[tuple[int, str, str]]) -> GdbTranscript:
        """Rebuild the conversation.

        :param chunks: (host monotonic ns, ``"in"`` towards the VMM or ``"out"`` from it, text), as read.
        """
        readers = {"in": PacketReader(), "out": PacketReader()}
        exchanges: list[tuple[str, str | None]] = []
        for _, direction, text in chunks:
            try:
                packets = readers[direction].feed(text.encode("latin-1", "replace"))
            except PacketError as error:
                return cls(tuple(exchanges), str(error))
            for packet in packets:
                if direction == "in":
                    exchanges.append((packet, None))
                elif exchanges and exchanges[-1][1] is None:
                    exchanges[-1] = (exchanges[-1][0], packet)
        return cls(tuple(exchanges))

    def answers(self, packet: str) -> list[str | None]:
        """What the stub answered to each `packet`; None for none."""
        return [answer for sent, answer in self.exchanges if sent == packet]
