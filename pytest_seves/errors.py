# SPDX-License-Identifier: GPL-2.0-or-later
"""One tree of exceptions; each carries its evidence.

::

    SevesError
    +-- InventoryError        a lab file is wrong
    +-- UsageError            an option is wrong
    +-- Undecided             the evidence does not reach the point that a requirement speaks of
    +-- Unsupported           the host or the VMM cannot do what was asked: a skip that names it
    +-- NotRecorded           a replay: the bundle does not have what the test judges: a skip that names it
    +-- RigError              our side is broken: never a verdict about the product
        +-- EvidenceError         recorded evidence is malformed or truncated
        +-- FirmwareImageError    a firmware file cannot be read or parsed
        +-- ModelError            the model host cannot run here
        +-- HostError             something about one host
            +-- DeadlineExceeded      it took longer than allowed
            +-- LeaseError            another run uses the host
            |   +-- LeaseLost             it was ours, and is no longer
            +-- ConnectError          no usable connection
            |   +-- HostUnreachable, HostKeyUnknown, HostKeyChanged, AuthenticationFailed, ConnectionLost
            +-- AgentError            the program on the host
            |   +-- NoPython, AgentGarbage, AgentDied, AgentRemoteError
            +-- HostFault             the host is not what the run began with
                +-- HostRebooted, DiskFull, NoFreeAsids, ClockJumped, KernelOops, FirmwareStateLost
"""

from __future__ import annotations

import unittest
from typing import Any

from .text import plain

#: Characters of a message, which may quote what a VMM or a host said.
LONGEST_MESSAGE = 16_000


class SevesError(Exception):
    """Root of the tree.

    :param message: where, what was tried, wanted, got, what to do; shown escaped, and shortened.
    :param evidence: whatever helps to judge the message, by name.
    """

    def __init__(self, message: str, **evidence: Any) -> None:
        message = plain(message, LONGEST_MESSAGE)
        super().__init__(message)
        self.message = message
        #: Evidence by name; never secrets.
        self.evidence = evidence


class InventoryError(SevesError):
    """A lab file is missing, malformed or contradicts itself."""


class UsageError(SevesError):
    """A command line option or ini value is wrong."""


class Undecided(SevesError):
    """The launch ended before the point that the requirement speaks of.

    Not a verdict, and never green: the test fails and is shown as undecided.
    """


class Unsupported(SevesError, unittest.SkipTest):
    """The host or the VMM lacks a capability that the test needs.

    Test runners show it as a skip: that is what :class:`unittest.SkipTest` is for.
    """


class NotRecorded(SevesError, unittest.SkipTest):
    """The bundle that is replayed does not have what the test judges: a skip that names it."""


class RigError(SevesError):
    """Something of ours is broken; the product was not judged."""


class EvidenceError(RigError):
    """Recorded evidence is malformed, truncated or contradicts itself."""


class FirmwareImageError(RigError):
    """A firmware image cannot be read or is no firmware image."""


class ModelError(RigError):
    """The model host cannot run on this machine."""


class HostError(RigError):
    """Something about one host.

    :param host: the name of its lab file.
    :cvar fault: what the class is called where it blocks a host.
    """

    fault = "does not answer"

    def __init__(self, message: str, *, host: str = "?", **evidence: Any) -> None:
        super().__init__(f"{host}: {message}", host=host, **evidence)
        self.host = host


class DeadlineExceeded(HostError):
    """An operation took longer than its deadline."""


class LeaseError(HostError):
    """The host is used by somebody else, and was not let go in time."""

    fault = "in use"


class LeaseLost(LeaseError):
    """The host was this run's, and is no longer: nothing more can be launched."""

    fault = "lease lost"


class ConnectError(HostError):
    """No usable SSH connection."""

    fault = "unreachable"


class HostUnreachable(ConnectError):
    """Name unknown, connection refused or no answer."""


class HostKeyUnknown(ConnectError):
    """No key is pinned for the host."""


class HostKeyChanged(ConnectError):
    """The host presented a key other than the pinned one."""


class AuthenticationFailed(ConnectError):
    """The host did not accept any of our keys."""


class ConnectionLost(ConnectError):
    """An established connection broke."""

    fault = "connection lost"


class AgentError(HostError):
    """The agent on the host could not do its work."""

    fault = "no agent"


class NoPython(AgentError):
    """The host has no Python, or one that is too old."""


class AgentGarbage(AgentError):
    """The agent's channel carried something other than frames."""


class AgentDied(AgentError):
    """The agent ended while it was needed."""


class AgentRemoteError(AgentError):
    """The agent answered a request with an error.

    :param kind: an errno name or the name of the remote exception.
    """

    def __init__(self, message: str, *, kind: str, host: str = "?", **evidence: Any) -> None:
        super().__init__(message, host=host, kind=kind, **evidence)
        self.kind = kind


class HostFault(HostError):
    """The host is no longer what the run began with: nothing is judged on it any more."""


class HostRebooted(HostFault):
    """Its boot id is another one."""

    fault = "rebooted"


class DiskFull(HostFault):
    """No space where the agent writes."""

    fault = "disk full"


class NoFreeAsids(HostFault):
    """No ASID is free for a SEV-ES guest, and no run of ours holds any."""

    fault = "no free SEV-ES ASIDs"


class ClockJumped(HostFault):
    """Its wall clock was set: times in the evidence do not compare."""

    fault = "clock jump"


class KernelOops(HostFault):
    """Its kernel reported an error of its own."""

    fault = "kernel oops"


class FirmwareStateLost(HostFault):
    """Its SEV firmware was reset or replaced."""

    fault = "SEV firmware lost its state"
