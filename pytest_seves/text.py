# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of guests, VMMs and hosts, made harmless before a person or a parser sees it."""

from __future__ import annotations

import re

_SUSPECT = re.compile(r"[^\n\t -~]")


def plain(text: str, longest: int | None = None) -> str:
    r"""`text` without anything that a terminal obeys or an encoder refuses.

    Line feeds and tabs stay, and what can be printed; the rest (escape sequences, NUL, carriage returns,
    bidirectional overrides, lone surrogates) becomes its escape: ``\x1b``. Applied twice it changes nothing
    more.

    :param longest: characters of `text` that are kept: its beginning and its end, with a word on what is
        missing between them.
    """
    if longest is not None and len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}[... {len(text) - 2 * half} characters ...]{text[-half:]}"
    return _SUSPECT.sub(_shown, text)


def one_line(text: str, longest: int | None = None) -> str:
    """As :func:`plain`, with line feeds and tabs escaped too."""
    return plain(text, longest).replace("\n", "\\n").replace("\t", "\\t")


def _shown(match: re.Match[str]) -> str:
    char = match[0]
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
