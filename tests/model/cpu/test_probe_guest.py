# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest on a right host, of each kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_seves.model.host import ModelHost
from tests.model.cpu.probing import boot
from tests.model.driving import Guest


@pytest.mark.parametrize("policy", [None, 1, 5], ids=["plain", "sev", "es"])
def test_parked_aps_wake_again_and_again(
    launch: Callable[..., Guest], host: ModelHost, policy: int | None
) -> None:
    """Regression: INIT left a plain vCPU its paging and EFER, and the next SIPI ended in a triple fault."""
    report = boot(launch, host, "park", rounds=5, policy=policy).report()
    assert (report.result, report.started, report.retries) == ("ok", 2, 0)
    assert [(ap.wakes, ap.spurious) for ap in report.parked] == [(5, 0)]
