# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a run's evidence comes from: hosts, or the bundle of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .evidence.launch import Launch
    from .guest.archive import Record
    from .guest.seam import Kvm, Launcher
    from .guest.seam import Target as Judged
    from .guest.spec import GuestSpec
    from .host.inventory import LabHost
    from .host.target import Target

#: Told of each piece of evidence that a test gets: its directory, and what names it in the bundle.
Tell = Callable[[str, "Record | None"], None]
#: Told of each guest that a test gets, with its evidence.
Given = Callable[["GuestSpec", "Launch"], None]


class Source(Protocol):
    """What a run needs of :class:`pytest_seves.hosts.Hosts` and of what stands in its place."""

    @property
    def entries(self) -> Mapping[str, LabHost]:
        """Lab entries by name."""

    def target(self, name: str) -> Judged:
        """The host called `name`."""

    def suite_launcher(self, name: str, test: str, tell: Tell, given: Given) -> Launcher:
        """`launch_guest` of one test, by its node id."""

    def suite_kvm(self, name: str, test: str, tell: Tell) -> Kvm:
        """`kvm` of one test, by its node id."""

    def connected(self) -> list[Target]:
        """The hosts that an agent was started on."""

    def used(self, name: str) -> Target | None:
        """The host called `name`, if a test has asked for it and it can be looked at."""

    def counts(self) -> tuple[int, int]:
        """Launches, and requests for a guest that they served."""

    def without_keys(self, text: str) -> str:
        """`text` without the paths of private keys."""

    def places(self) -> dict[str, dict[str, Any]]:
        """Where hosts are whose place the controller has found."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""
