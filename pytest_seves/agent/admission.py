# SPDX-License-Identifier: GPL-2.0-or-later
"""What whoever makes a guest waits for: that nobody is alone on the host, and a place among its guests."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

from pytest_seves.agent.command import Fail
from pytest_seves.agent.loop import Loop
from pytest_seves.agent.places import Places
from pytest_seves.agent.turns import Turns


class Admission:
    """An agent's."""

    def __init__(self, loop: Loop, turns: Turns) -> None:
        self._turns = turns
        self._places = Places(loop)

    def enter(
        self,
        side_by_side: Optional[int],
        memory_mib: int,
        granted: Callable[[], None],
        fail: Fail,
        timeout_s: float,
    ) -> None:
        """Call `granted` once a guest may be made; :meth:`leave` once for each.

        :param timeout_s: for the turn, and again for the place.
        """

        def refused(kind: str, text: str, evidence: Dict[str, Any]) -> None:
            self._turns.give_back()
            fail(kind, text, evidence)

        def take() -> None:
            self._places.take(side_by_side, memory_mib, granted, refused, timeout_s)

        self._turns.share(take, fail, timeout_s)

    def leave(self) -> None:
        """The guest is gone, or was not made."""
        self._places.give_back()
        self._turns.give_back()
