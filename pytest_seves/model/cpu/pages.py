# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of guest memory that are in use, and how copies of the VMM's pages are compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from .backing import Place
from .nested_paging import PAGE

_LINE, _WORD = 64, 8
_IN_PAGE = PAGE - 1


@dataclass(slots=True)
class Page:
    """A page in use.

    :ivar twin: of a copy, what both sides had when they were last the same.
    :ivar executable: that code was fetched from it; the engine looks at writes.
    :ivar written: of a private page, that the guest has changed it since its ciphertext was made.
    """

    gpa: int
    host: int
    place: Place
    private: bool
    readonly: bool
    twin: bytes | None = None
    written: bool = False
    executable: bool = False
    run: Run | None = None
    index: int = 0

    def read(self, gpa: int, size: int) -> bytes:
        """What is in it."""
        start = self.place.offset + (gpa & _IN_PAGE)
        return self.place.memory[start : start + size]


@dataclass(slots=True)
class Run:
    """Copies that lie side by side in the VMM's memory, and their twins in one piece."""

    pages: list[Page]
    twin: bytearray


def runs_of(pages: list[Page]) -> list[Run]:
    """Their runs, each page told of its own."""
    groups: list[list[Page]] = []
    for page in sorted(pages, key=lambda page: page.host):
        if groups and groups[-1][-1].host + PAGE == page.host:
            groups[-1].append(page)
        else:
            groups.append([page])
    runs = [Run(group, bytearray().join(page.twin or b"" for page in group)) for group in groups]
    for run in runs:
        for index, page in enumerate(run.pages):
            page.run, page.index = run, index
    return runs


def pieces(gpa: int, size: int) -> list[tuple[int, int]]:
    """(address, length), one for each page."""
    out = []
    while size > 0:
        length = min(size, PAGE - gpa % PAGE)
        out.append((gpa, length))
        gpa, size = gpa + length, size - length
    return out


def differences(old: bytes, new: bytes) -> list[tuple[int, int]]:
    """Where two pages differ, in words: what one side changed must not undo what the other did beside it."""
    out: list[tuple[int, int]] = []
    for line in range(0, PAGE, _LINE):
        if old[line : line + _LINE] == new[line : line + _LINE]:
            continue
        for word in range(line, line + _LINE, _WORD):
            if old[word : word + _WORD] != new[word : word + _WORD]:
                if out and out[-1][1] == word:
                    out[-1] = (out[-1][0], word + _WORD)
                else:
                    out.append((word, word + _WORD))
    return out
