# SPDX-License-Identifier: GPL-2.0-or-later
"""REGISTERS: a guest that runs with canaries in registers and memory, which nobody may see or change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_seves.errors import Undecided
from pytest_seves.evidence.secrecy import places_of
from pytest_seves.guest.payload.image import CANARY_PAGE
from pytest_seves.guest.probe import END
from pytest_seves.guest.steps import Step, console, dump, gdb, hmp, qmp, repeat

if TYPE_CHECKING:
    from pytest_seves.evidence.launch import Launch
    from pytest_seves.guest.probe import Probe

SEED = 0x5EC2E7A1  # known to the guest alone: its image holds the complement
ROUNDS = 1000
ES = 0x5
WRITTEN = "efbeadde00000000"

PLACED = console(r" beat=1 holding=2 [^\n]*\n")
LATER = console(r" beat=[^\n]*\n", fresh=True)
SHOW = hmp("info registers -a")
READ: list[Step] = [SHOW, gdb("?", "Hg1", "g", "Hg2", "g", "D")]
DUMP: list[Step] = [
    hmp(f"xp /512gx {CANARY_PAGE:#x}"),
    gdb("?", f"m{CANARY_PAGE:x},200", "D"),
    dump(CANARY_PAGE),
]
PUT = f"P1={WRITTEN}"  # RBX
#: QEMU takes P only after target.xml was read, and hands on what it wrote only if it had read the registers.
WRITE = gdb("?", "qXfer:features:read:target.xml:0,ffb", "Hg2", "g", PUT, "D")


def spin(probe: Probe, policy: int | None, *steps: Step, **options: Any) -> Launch:
    """Two vCPUs that hold canaries; the steps are taken between a beat with all placed and a later one."""
    taken: list[Step] = [PLACED, *steps, LATER]
    launch = probe("spin", vcpus=2, policy=policy, seed=SEED, debug_registers=False, steps=taken, **options)
    if launch.reports[-1].beats:
        return launch
    raise Undecided(f"{launch.host}: the guest placed no canaries: {launch.account()}")


def kept(launch: Launch) -> bool:
    """Whether the guest found all its canaries whenever it looked."""
    beats = launch.reports[-1].beats
    return all(b.canaries.gpr and b.canaries.xmm and b.canaries.cr3 and b.canaries.memory for b in beats)


@pytest.mark.requirement("REGISTERS-2")
@pytest.mark.parametrize("init_path", [None, "INIT2"], ids=["own", "INIT2"])
def test_no_canary_is_seen(probe: Probe, init_path: str | None) -> None:
    """No register that the monitor, a debugger, a dump or KVM shows holds a value of the guest."""
    launch = spin(probe, ES, *READ, dump(CANARY_PAGE), init_path=init_path)
    assert launch.phase == "", launch.account()
    assert [place for place in places_of(SEED, launch) if not place.startswith("dumped memory")] == []


@pytest.mark.requirement("REGISTERS-2")
def test_canaries_of_a_plain_guest_are_seen(probe: Probe) -> None:
    """Without encryption the monitor, a debugger, a dump and KVM show them (control)."""
    launch = spin(probe, None, *READ, dump(CANARY_PAGE))
    seen = {"dumped memory", "dumped registers", "gdb", "kvm", "monitor"}
    assert {place.partition(":")[0] for place in places_of(SEED, launch)} == seen


@pytest.mark.requirement("REGISTERS-4")
def test_stop_read_and_cont_a_thousand_times(probe: Probe) -> None:
    """Stopping, reading and continuing leaves a guest running with all that it held, 1000 times in a row."""
    launch = spin(probe, ES, repeat(ROUNDS, qmp("stop"), hmp("info registers"), qmp("cont")))
    commands = ("stop", "human-monitor-command", "cont")
    assert [len(launch.qmp.replies(command)) for command in commands] == [ROUNDS] * 3
    assert launch.phase == "", launch.account()
    assert kept(launch)


def written(probe: Probe, policy: int | None) -> Launch:
    """A guest of which a debugger writes RBX of vCPU 1 while it holds canaries; it says what it found."""
    steps: list[Step] = [PLACED, WRITE, console(END)]
    return probe("spin", vcpus=2, policy=policy, seed=SEED, steps=steps, rounds=20, beat_ticks=50_000_000)


@pytest.mark.requirement("REGISTERS-5")
def test_a_written_register_changes_nothing(probe: Probe) -> None:
    """A register that a debugger writes is not the guest's."""
    launch = written(probe, ES)
    assert launch.gdb.answers(PUT) == ["OK"]
    assert [held.canaries.gpr for held in launch.report.held] == [True, True]


@pytest.mark.requirement("REGISTERS-5")
def test_a_written_register_of_a_plain_guest_changes(probe: Probe) -> None:
    """Without encryption it is (control)."""
    launch = written(probe, None)
    assert [held.canaries.gpr for held in launch.report.held] == [True, False]


@pytest.mark.requirement("REGISTERS-7")
@pytest.mark.parametrize("policy", [0x1, ES], ids=["NODBG", "ES+NODBG"])
def test_private_memory_is_not_seen(probe: Probe, policy: int) -> None:
    """A private page is not what the guest wrote, to the monitor, a debugger and dump-guest-memory."""
    launch = spin(probe, policy, *DUMP)
    assert launch.phase == "", launch.account()
    memory = ("monitor: human-monitor-command", "gdb: m", "dumped memory")
    assert [place for place in places_of(SEED, launch) if place.startswith(memory)] == []


@pytest.mark.requirement("REGISTERS-7")
def test_memory_of_a_plain_guest_is_seen(probe: Probe) -> None:
    """Without encryption it is (control)."""
    launch = spin(probe, None, *DUMP)
    assert {place.partition(":")[0] for place in places_of(SEED, launch)} >= {
        "dumped memory",
        "gdb",
        "monitor",
    }
