# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest owner, with a launch session for the platform under test."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.spec import OwnerSession
from pytest_seves.measurement.session import create_session
from pytest_seves.spec.sev import Policy

if TYPE_CHECKING:
    from pytest_seves.fixtures import Launcher


@dataclass(frozen=True)
class Owner:
    """What the owner hands to the launch: bytes, and where they lie on the host."""

    policy: int
    dh_cert: bytes = field(repr=False)
    session: bytes = field(repr=False)
    files: OwnerSession


@pytest.fixture
def owner(launch_guest: Launcher) -> Owner:
    """An owner who trusts the platform's Diffie-Hellman certificate as query-sev-capabilities tells it."""
    asked = launch_guest().reached(Stage.RUNNING)
    answers = asked.qmp.replies("query-sev-capabilities")
    if not answers:
        raise Undecided(f"{asked.host}: no owner can be made: query-sev-capabilities failed")
    policy = int(Policy.NODBG | Policy.ES)

    def make() -> str:
        made = create_session(base64.b64decode(answers[0]["pdh"]), policy)
        return f"{made.dh_cert_file}\n{made.session_file}"

    dh_cert, session = launch_guest.made("owner", make).split("\n")
    files = OwnerSession(
        dh_cert=launch_guest.put("owner-dh-cert", dh_cert.encode()),
        session=launch_guest.put("owner-session", session.encode()),
    )
    return Owner(policy, base64.b64decode(dh_cert), base64.b64decode(session), files)
