# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts refuse what ctypes structures accept, and round-trip what they accept."""

from __future__ import annotations

import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.spec import kvm, layout, sev, vmsa
from pytest_seves.spec.layout import Field, Layout

POINT = Layout("point", 8, Field("x", 0, "H"), Field("_pad", 2, "2s"), Field("y", 4, "I"))
LAYOUTS = [
    value for module in (kvm, sev, vmsa) for value in vars(module).values() if isinstance(value, Layout)
]


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        (8, [Field("a", 0, "I"), Field("b", 2, "I")], "overlaps"),
        (8, [Field("a", 0, "H"), Field("b", 4, "I")], "leaves a gap"),
        (8, [Field("a", 0, "I")], "wanted 0x8"),
        (8, [Field("a", 0, "I"), Field("a", 4, "I")], "occurs twice"),
    ],
)
def test_a_wrong_table_is_refused(size: int, fields: list[Field], message: str) -> None:
    """Overlap, gap, wrong total and a name used twice fail where the layout is declared."""
    with pytest.raises(ValueError, match=message):
        Layout("wrong", size, *fields)


def test_an_unknown_name_is_refused() -> None:
    """A misspelt field is an error, not an attribute that nobody reads."""
    with pytest.raises(ValueError, match="point has no field 'z'"):
        POINT.encode(z=1)


def test_a_value_out_of_range_is_refused() -> None:
    """A value that does not fit is an error, not cut off."""
    with pytest.raises(ValueError, match=re.escape("point.x: 65536 does not fit")):
        POINT.encode(x=0x10000)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_wrong_length_is_refused(size: int) -> None:
    """Bytes of another length are not decoded."""
    with pytest.raises(ValueError, match="wanted 8 bytes"):
        POINT.decode(bytes(size))


@given(x=st.integers(0, 0xFFFF), y=st.integers(0, 0xFFFFFFFF))
def test_decode_inverts_encode(x: int, y: int) -> None:
    """What was encoded is decoded again."""
    assert POINT.decode(POINT.encode(x=x, y=y)) == {"x": x, "y": y}


@pytest.mark.parametrize("table", LAYOUTS, ids=lambda table: table.name)
@given(data=st.data())
def test_every_layout_inverts(table: Layout, data: st.DataObject) -> None:
    """Every declared layout decodes and encodes to the same bytes where reserved ranges are zero."""
    raw = data.draw(st.binary(min_size=table.size, max_size=table.size))
    values = table.decode(raw)
    assert table.decode(table.encode(**values)) == values


def test_differences_name_the_field() -> None:
    """A difference is named by its dotted field, reserved ranges included."""
    plain, other = vmsa.VMSA.encode(), vmsa.VMSA.encode(cs={"base": 0xFFFF0000})
    assert vmsa.VMSA.differences(plain, other) == [("cs.base", 0, 0xFFFF0000)]


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(layout).failed == 0
