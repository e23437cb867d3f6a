# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's pool of address space identifiers for encrypted guests.

Source: Linux 6.1 arch/x86/kvm/svm/sev.c, sev_asid_new() and sev_asid_free(): the lowest free number of the
range is taken; a freed one waits for a flush, which happens when the range has run dry.
"""

from __future__ import annotations

from collections.abc import Callable


class AsidPool:
    """SEV-ES takes 1 to ``es_count``, SEV the numbers above.

    :param es_count: ASIDs for SEV-ES guests, CPUID 0x8000001F EDX minus one.
    :param sev_count: ASIDs for SEV guests.
    :param flush: WBINVD on all CPUs and the firmware's DF_FLUSH; raises if the firmware refuses.
    """

    def __init__(self, es_count: int, sev_count: int, flush: Callable[[], None]) -> None:
        if es_count < 0 or sev_count < 0:
            raise ValueError(f"wanted ASID counts of 0 or more, got ES {es_count}, SEV {sev_count}")
        self.es_count = es_count
        self.sev_count = sev_count
        self._flush = flush
        self._used: set[int] = set()
        self._unflushed: set[int] = set()

    def allocate(self, es: bool) -> int | None:
        """The lowest free ASID of the range, None if all are in use."""
        numbers = self._range(es)
        free = self._lowest(numbers)
        if free is None and any(asid in self._unflushed for asid in numbers):
            self._flush()
            self._unflushed.clear()
            free = self._lowest(numbers)
        if free is not None:
            self._used.add(free)
        return free

    def release(self, asid: int) -> None:
        """Give back an ASID that :meth:`allocate` returned."""
        self._used.remove(asid)
        self._unflushed.add(asid)

    def in_use(self, es: bool) -> int:
        """How many ASIDs of the range guests hold now."""
        return len(self._used.intersection(self._range(es)))

    def _range(self, es: bool) -> range:
        return (
            range(1, self.es_count + 1)
            if es
            else range(self.es_count + 1, self.es_count + self.sev_count + 1)
        )

    def _lowest(self, numbers: range) -> int | None:
        return next((n for n in numbers if n not in self._used and n not in self._unflushed), None)
