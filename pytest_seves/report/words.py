# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of strangers on a page: bounded, and nothing in it moves, hides or turns what stands around it."""

from __future__ import annotations

from pytest_seves.text import plain

#: Characters kept of one text in a report, and shown of it on a page.
KEPT, SHOWN = 1000, 400


def bounded(text: object, limit: int = KEPT) -> str:
    """The beginning of a text, with what is left out counted."""
    whole = str(text)
    return whole if len(whole) <= limit else f"{whole[:limit]} [... {len(whole) - limit} more characters]"


def shown(text: object, limit: int = SHOWN) -> str:
    r"""For a page: bounded, every control, format and unassigned character as its escape.

    >>> shown("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    return plain(bounded(text, limit))
