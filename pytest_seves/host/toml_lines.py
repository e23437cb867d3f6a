# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a TOML file each table and key is written: tomllib reads values, but forgets the lines."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")

Path = tuple[str, ...]


def toml_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of each key and table header of `text`, which must be TOML that tomllib reads.

    >>> toml_lines('[host]\\nport = 22\\njump = {port = 23}')
    {('host',): 1, ('host', 'port'): 2, ('host', 'jump'): 3, ('host', 'jump', 'port'): 3}
    >>> toml_lines('[[file]]\\n[[file]]\\npath = 1')
    {('file',): 1, ('file', '1'): 1, ('file', '2'): 2, ('file', '2', 'path'): 3}
    """
    lines: dict[Path, int] = {}
    for path, position in _Scanner(text).document():
        for depth in range(1, len(path) + 1):  # a dotted key also writes the tables on its way
            lines.setdefault(path[:depth], text.count("\n", 0, position) + 1)
    return lines


class _Scanner:
    """Walks over valid TOML; on anything unforeseen it stops early, and those lines stay unknown."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def document(self) -> Iterator[tuple[Path, int]]:
        table: Path = ()
        arrays: Counter[Path] = Counter()
        while self._blank() < len(self.text):
            start = self.at
            if self.text[self.at] == "[":
                self._while("[ \t")
                table = self._key()
                if self.text.startswith("[[", start):  # one of several tables: the first is number 1
                    arrays[table] += 1
                    table = (*table, str(arrays[table]))
                yield table, start
                self._while("] \t")
            else:
                yield from self._pair(table)
                self._match(re.compile(r"[^\n#]*"))  # the rest of a date with a blank inside
            if self.at == start:
                return

    def _pair(self, table: Path) -> Iterator[tuple[Path, int]]:
        start = self.at
        path = (*table, *self._key())
        if len(path) == len(table):
            return
        yield path, start
        self._while(" \t=")
        yield from self._value(path)

    def _value(self, path: Path) -> Iterator[tuple[Path, int]]:
        opening = self.text[self.at : self.at + 1]
        if opening not in ("[", "{"):
            if not self._match(_STRING):
                self._match(_SCALAR)
            return
        self.at += 1
        while self._blank() < len(self.text) and self.text[self.at] not in "]}":
            before = self.at
            yield from self._value(path) if opening == "[" else self._pair(path)
            self._blank()
            self._while(",")
            if self.at == before:
                return
        self.at += 1

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            self._while(" \t")
            if bare := self._match(_BARE_KEY):
                parts.append(bare)
            elif quoted := self._match(_STRING):
                (name,) = tomllib.loads(f"{quoted} = 0")
                parts.append(name)
            self._while(" \t")
            if self.text[self.at : self.at + 1] != ".":
                return tuple(parts)
            self.at += 1

    def _blank(self) -> int:
        self._match(_BLANK)
        return self.at

    def _while(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]
