# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's ASID pool."""

from __future__ import annotations

import pytest

from pytest_seves.model.asid import AsidPool


def pool(es: int = 2, sev: int = 3) -> tuple[AsidPool, list[str]]:
    """A pool and the list of its flushes."""
    flushes: list[str] = []
    return AsidPool(es, sev, lambda: flushes.append("flush")), flushes


def test_negative_size_is_refused() -> None:
    """A pool cannot hold less than nothing."""
    with pytest.raises(ValueError, match="got ES -1"):
        pool(es=-1)


def test_release_of_a_free_asid_is_refused() -> None:
    """Freeing twice is the model's mistake, never silent."""
    with pytest.raises(KeyError):
        pool()[0].release(1)


def test_exhausted_range_gives_none_and_leaves_the_other_alone() -> None:
    """ES guests cannot spill into the SEV range, nor the reverse."""
    asids, _ = pool()
    assert [asids.allocate(es=True) for _ in range(3)] == [1, 2, None]
    assert [asids.allocate(es=False) for _ in range(4)] == [3, 4, 5, None]


def test_freed_asid_returns_only_after_a_flush() -> None:
    """A freed ASID is dirty; the flush happens when the range runs dry."""
    asids, flushes = pool(es=2)
    asids.allocate(es=True)
    asids.release(1)
    assert (asids.allocate(es=True), flushes) == (2, [])
    assert (asids.allocate(es=True), flushes) == (1, ["flush"])


def test_no_flush_when_nothing_was_freed() -> None:
    """A full range is simply full."""
    asids, flushes = pool(es=1)
    asids.allocate(es=True)
    assert asids.allocate(es=True) is None
    assert flushes == []


def test_use_is_counted_by_range() -> None:
    """misc.current's two lines."""
    asids, _ = pool()
    asids.allocate(es=True)
    asids.allocate(es=False)
    asids.allocate(es=False)
    assert (asids.in_use(es=True), asids.in_use(es=False)) == (1, 2)
