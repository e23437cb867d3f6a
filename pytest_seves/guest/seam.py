# SPDX-License-Identifier: GPL-2.0-or-later
"""What a suite holds, whoever stands behind it: a host and its VMM, or the bundle of an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from pytest_seves.errors import Unsupported
from pytest_seves.spec import kvm

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.host.facts import HostFacts
    from pytest_seves.host.inventory import LabHost

    from .answers import Answers
    from .calls import Steps
    from .init_path import InitPath


class Target(Protocol):
    """A host that is judged, as far as a suite sees it."""

    @property
    def name(self) -> str:
        """The name of its lab file."""

    @property
    def entry(self) -> LabHost:
        """Its lab file."""

    @property
    def facts(self) -> HostFacts:
        """What it is."""

    def require_ready(self) -> None:
        """Refuse to judge a VMM on a host that cannot run SEV-ES guests."""


class Alone(Protocol):
    """Launches that nobody shares, while no other guest is launched on the host."""

    def __call__(self, **options: Any) -> Launch:
        """Launch a guest; options as those of :class:`~pytest_seves.guest.spec.GuestSpec`."""

    def leave_free(self, es_asids: int | None) -> int:
        """Take SEV-ES ASIDs out of the pool until so many are left; None gives all back."""


class Launcher(Protocol):
    """The factory behind `launch_guest`."""

    def __call__(self, **options: Any) -> Launch:
        """Evidence of a launch with these options (:class:`~pytest_seves.guest.spec.GuestSpec`)."""

    def alone(self) -> AbstractContextManager[Alone]:
        """No other guest is launched on this host meanwhile: what a launch gives back can be counted."""

    def put(self, name: str, content: bytes) -> str:
        """Put a file on the host for guests to use; returns its path there."""

    def made(self, name: str, make: Callable[[], str]) -> str:
        """What `make` makes by chance for a guest: part of the evidence, and public."""


class Kvm(Protocol):
    """The factory behind the fixture `kvm`."""

    def __call__(self, *steps: Steps, timeout_s: float = ...) -> Answers:
        """The answers to a program of direct calls, one for each step."""

    def require(self, path: InitPath) -> None:
        """Skip where the kernel lacks an init path."""


def require_init2(name: str, facts: HostFacts) -> None:
    """Skip where the kernel lacks KVM_SEV_INIT2.

    :raise Unsupported: names what is missing.
    """
    if not (facts.vm_types or 0) >> kvm.KVM_X86_SEV_ES_VM & 1:
        raise Unsupported(f"{name}: this kernel has no KVM_SEV_INIT2: KVM_CAP_VM_TYPES has no SEV-ES VM")
