# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of guests, VMMs and hosts, made harmless before a person or a parser sees it."""

from __future__ import annotations

import re

_SUSPECT = re.compile(r"[^\n\t -~]")
#: At the beginning of a line: what GitHub's and Azure's runners take for a command, wherever a log has it.
_COMMAND = re.compile(r"^([ \t]*)(?=::|##\[)", re.MULTILINE)


def plain(text: str, longest: int | None = None) -> str:
    r"""`text` without anything that a terminal obeys or an encoder refuses.

    Line feeds and tabs stay, and what can be printed; the rest (escape sequences, NUL, carriage returns,
    bidirectional overrides, lone surrogates) becomes its escape: ``\x1b``. Applied twice it changes nothing
    more. A line that a CI runner would take for a command to it begins with a backslash.

    :param longest: characters of `text` that are kept: its beginning and its end, with a word on what is
        missing between them.
    """
    if longest is not None and len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}[... {len(text) - 2 * half} characters ...]{text[-half:]}"
    return _COMMAND.sub(r"\1\\", _SUSPECT.sub(_shown, text))


def one_line(text: str, longest: int | None = None) -> str:
    """As :func:`plain`, with line feeds and tabs escaped too."""
    return plain(text, longest).replace("\n", "\\n").replace("\t", "\\t")


def _shown(match: re.Match[str]) -> str:
    char = match[0]
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
