# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of others, made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import LONGEST_MESSAGE, RigError
from pytest_seves.text import one_line, plain


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\x00b\rc\x7f\x9b1m", "a\\x00b\\rc\\x7f\\x9b1m"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\udcff\ud800", "\\udcff\\ud800"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("lines\n\tstay, gr\xfcn \N{SNOWMAN} stays", "lines\n\tstay, gr\xfcn \N{SNOWMAN} stays"),
        ("</script><b>", "</script><b>"),
        ("a ::b\n::error::x\n\t##[group]y\n##z", "a ::b\n\\::error::x\n\t\\##[group]y\n##z"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(raw: str, shown: str) -> None:
    """Escape sequences, control characters, overrides and lone surrogates; text stays text."""
    assert plain(raw) == shown
    assert plain(shown) == shown


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_can_be_printed_and_encoded(raw: str) -> None:
    """Nothing that can be said breaks an encoder or obeys nobody's wish."""
    shown = plain(raw)
    shown.encode()
    assert all(char in "\n\t" or char.isprintable() for char in shown)
    assert one_line(raw).isprintable()


def test_long_text_keeps_its_ends() -> None:
    """What is missing is counted."""
    assert plain("a" * 10 + "x" * 1000 + "z" * 10, 20) == "a" * 10 + "[... 1000 characters ...]" + "z" * 10


def test_messages_of_errors_are_harmless() -> None:
    """Whatever they quote, and however long it is."""
    error = RigError("said: \x1b]0;owned\x07" + "x" * 10 * LONGEST_MESSAGE)
    assert str(error).startswith("said: \\x1b]0;owned\\x07xxx")
    assert len(str(error)) < 2 * LONGEST_MESSAGE
