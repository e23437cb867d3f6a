# SPDX-License-Identifier: GPL-2.0-or-later
"""POLICY: the guest policy on its way to the firmware."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.spec import policy_name
from pytest_seves.spec.sev import FirmwareStatus, Policy, SevCmd, policy_with_api

if TYPE_CHECKING:
    from pytest_seves.fixtures import Launcher

ES = Policy.ES
LEGAL = [
    ES,
    ES | Policy.NODBG,
    ES | Policy.NOKS,
    ES | Policy.NOSEND,
    ES | Policy.DOMAIN,
    ES | Policy.SEV,
    ES | Policy.NODBG | Policy.NOKS | Policy.NOSEND | Policy.DOMAIN | Policy.SEV,
    Policy.NODBG | Policy.NOKS,
    policy_with_api(ES | Policy.NODBG, 0, 17),
]
#: No firmware has this API version.
TOO_NEW = policy_with_api(ES | Policy.NODBG, 0xFF, 0xFF)


@pytest.mark.requirement("POLICY-1")
@pytest.mark.parametrize("policy", LEGAL, ids=policy_name)
def test_legal_policy_reaches_the_firmware(launch_guest: Launcher, policy: int) -> None:
    """A legal policy is handed over bit for bit, accepted, and the guest runs."""
    timeline = launch_guest(policy=int(policy)).initialised_for(policy).attempted(Stage.STARTED).timeline
    starts = timeline.commands(SevCmd.KVM_SEV_LAUNCH_START)
    assert [start.command.before["policy"] for start in starts] == [policy]
    assert timeline.stage == Stage.RUNNING


@pytest.mark.requirement("POLICY-2")
def test_refused_policy_ends_the_launch(launch_guest: Launcher) -> None:
    """A least API version that no firmware has ends the launch with POLICY_FAILURE, tried once."""
    launch = launch_guest(policy=TOO_NEW).attempted(Stage.STARTED)
    starts = launch.timeline.commands(SevCmd.KVM_SEV_LAUNCH_START)
    assert [start.command.error for start in starts] == [FirmwareStatus.POLICY_FAILURE]
    assert f"fw_error={int(FirmwareStatus.POLICY_FAILURE)}" in launch.stderr.text
    assert launch.timeline.runs == ()
    assert (launch.exit.signal, launch.exit.status) == (None, 1)
