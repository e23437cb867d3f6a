# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that run on the model and do not do what they should: each ends in time, with what can be known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.timeline import Stage
from pytest_seves.guest.firmware_image import build_variant
from pytest_seves.guest.launcher import Launcher
from pytest_seves.guest.probe import END, Probe
from pytest_seves.guest.steps import console

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.host.target import Target

SOON = console(END, timeout_s=3.0)


@pytest.fixture(scope="module")
def launcher(target: Target) -> Launcher:
    """Launches of this module."""
    return Launcher(target)


def with_code(code: bytes) -> bytes:
    """A firmware image with a right table that executes `code` at its reset vector, 16 bytes at most."""
    image = bytearray(build_variant("valid"))
    image[-16 : -16 + len(code)] = code
    return bytes(image)


def run(launcher: Launcher, name: str, code: bytes, policy: int | None) -> Launch:
    """Launch it and wait for a report, which will not come."""
    return launcher(firmware=launcher.put(f"{name}.fd", with_code(code)), policy=policy, steps=[SOON])


@pytest.mark.parametrize("policy", [None, 0x5], ids=["plain", "ES"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("halts", b"\xfa\xf4\xeb\xfc"),  # cli; hlt; jmp
        ("spins", b"\xeb\xfe"),  # jmp $
        ("nothing", b"\xea\x00\x00\x00\x50"),  # jmp far 5000:0000, where nothing is
        ("outside", b"\xb8\x00\xa0\x8e\xd8\xa2\x00\x00\xeb\xfe"),  # writes to A000:0000, no memory
        ("dies", b"\x0f\x0b"),  # ud2, and no handler for anything
    ],
)
def test_a_guest_that_never_reports(launcher: Launcher, name: str, code: bytes, policy: int | None) -> None:
    """The wait ends in time, and the VMM says how it stands."""
    launch = run(launcher, name, code, policy)
    assert launch.timeline.stage == Stage.RUNNING
    assert launch.qmp.all("query-status")[-1].received_ns is not None
    with pytest.raises(Undecided, match=r"wanted one report, got 0|said nothing"):
        _ = launch.report


def test_a_guest_that_never_reports_tells_its_registers(launcher: Launcher) -> None:
    """Registers of a plain guest that hangs are part of the evidence."""
    launch = run(launcher, "spins", b"\xeb\xfe", None)
    (shown,) = launch.qmp.replies("human-monitor-command")
    assert "EIP=0000fff0" in shown
    assert launch.phase.startswith("waiting for ' end scenario=")


@pytest.mark.parametrize("by", ["cf9", "keyboard"])
def test_a_guest_that_reports_twice(target: Target, by: str) -> None:
    """A plain guest that resets itself reports again: two reports, of which the second says so."""
    again = console(END, fresh=True)
    launch = Probe(Launcher(target))("reset", vcpus=2, policy=None, reset_by=by, steps=[console(END), again])
    assert [report.again for report in launch.reports] == [False, True]
    with pytest.raises(Undecided, match="wanted one report, got 2"):
        _ = launch.report


def test_a_storm_of_exceptions(target: Target) -> None:
    """Thousands of #VC on three vCPUs at once: every answer is the same, and all are counted."""
    report = Probe(Launcher(target))("storm", vcpus=3, rounds=1000).report
    assert [(storm.rounds, storm.bad) for storm in report.storms] == [(1000, 0)] * 3
    assert all(storm.vc[0x72] >= 1000 and storm.vc[0x7B] >= 1000 for storm in report.storms)
