# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest, a VMM or a host said, as text that can do nothing to a terminal or a pager."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""`text` with every character that is neither printable, a line feed nor a tab as its escape.

    >>> plain("a\x1b[31m\x00\n\u202eb")
    'a\\x1b[31m\\x00\n\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def plain_line(text: str) -> str:
    r"""The same on one line: line feeds and tabs are escaped too.

    >>> plain_line("a\nb")
    'a\\nb'
    """
    return plain(text).replace("\n", r"\n").replace("\t", r"\t")


def _shown(char: str) -> str:
    return char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii")
