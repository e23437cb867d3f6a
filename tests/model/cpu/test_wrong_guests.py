# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that are wrong about a running SEV-ES guest, each in one way: what the probe guest meets."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_seves.guest.defects import kernel_settings
from pytest_seves.guest.payload.image import CANARY_CR3, CANARY_PAGE, canary
from pytest_seves.model.host import ModelHost
from pytest_seves.spec import kvm
from tests.model.cpu.board import Board, long_mode
from tests.model.cpu.probing import Probe, boot
from tests.model.cpu.test_guests import ASK, ask, event
from tests.model.driving import Guest

#: Of virtual time, where a guest waits in vain: less than a second of real time.
SHORT = 100_000_000
SEED = 0x5EC2E7A1
#: A debugger's write to RBX of the second vCPU; QEMU takes it once the registers were read.
WRITE = ("?", "qXfer:features:read:target.xml:0,ffb", "Hg2", "g", "P1=efbeadde00000000", "D")
Boot = Callable[..., Probe]


@pytest.fixture
def wrong(launch: Callable[..., Guest]) -> Iterator[Boot]:
    """Launch the probe guest on a host with a defect, by name; "" is a right host."""
    hosts: list[ModelHost] = []

    def run(defect: str, scenario: str = "boot", *, kernel: str = "linux-6.12", **parameters: Any) -> Probe:
        settings = kernel_settings((defect,)) if defect else ""
        hosts.append(ModelHost.start(f"{kernel}:{settings}"))
        return boot(launch, hosts[-1], scenario, **parameters)

    yield run
    for host in hosts:
        host.close()


# Starting APs


@pytest.mark.parametrize("vector", [0x08, 0x9F])
def test_ap_starts_at_its_sipi_vector(wrong: Boot, vector: int) -> None:
    """Every AP says that it came by the vector, and goes on all the same."""
    report = wrong("ap-starts-at-sipi", sipi_vector=vector, vcpus=3).report()
    assert (report.result, report.started) == ("ok", 3)
    assert [(ap.entry, ap.entry_address, ap.entry_cs) for ap in report.cpus[1:]] == [
        ("sipi-vector", vector << 12, vector << 8)
    ] * 2


def test_ap_that_started_wrongly_parks_rightly(wrong: Boot) -> None:
    """Later SIPIs end its reset hold."""
    report = wrong("ap-starts-at-sipi", "park", rounds=3).report()
    assert (report.result, report.started, report.retries) == ("ok", 2, 0)


def test_last_ap_is_lost(wrong: Boot) -> None:
    """All others come."""
    report = wrong("ap-lost", vcpus=3, timeout_ticks=SHORT, beat_ticks=1).report()
    assert (report.result, report.expected, report.started) == ("timeout", 3, 2)
    assert [cpu.apic_id for cpu in report.cpus if cpu.arrived] == [0, 1]


def test_single_vcpu_is_not_lost(wrong: Boot) -> None:
    """The BSP needs no SIPI."""
    assert wrong("ap-lost", vcpus=1).report().result == "ok"


def test_hold_is_not_woken(wrong: Boot) -> None:
    """The AP comes, and never again."""
    report = wrong("hold-not-woken", "park", rounds=2, timeout_ticks=SHORT, beat_ticks=1).report()
    assert (report.result, report.started) == ("timeout", 2)
    assert [ap.wakes for ap in report.parked] == [0]


@pytest.mark.parametrize("defect", ["ap-starts-at-sipi", "ap-lost", "hold-not-woken"])
@pytest.mark.parametrize("policy", [None, 1], ids=["plain", "sev"])
def test_aps_of_other_guests_start_rightly(wrong: Boot, defect: str, policy: int | None) -> None:
    """These defects are of SEV-ES guests alone."""
    report = wrong(defect, "park", rounds=2, policy=policy).report()
    assert (report.result, report.started, report.retries) == ("ok", 2, 0)


# Ending


def test_guest_goes_on_though_it_asked_for_its_end(wrong: Boot) -> None:
    """It says so, and the VMM is told nothing."""
    probe = wrong("termination-swallowed", "terminate", reason_set=1, reason_code=2)
    probe.wait(lambda console: b"returned=1" in console)
    assert probe.guest("query-status")["status"] == "running"
    assert probe.quit() == ["vCPU 0: guest requested termination, GHCB MSR 0x21100"]


@pytest.mark.parametrize("kernel", ["linux-6.1", "linux-6.12"])
def test_triple_fault_hangs(wrong: Boot, kernel: str) -> None:
    """The VMM stops, continues and quits a guest that does nothing more."""
    probe = wrong("triple-fault-hangs", "triple-fault", kernel=kernel)
    before = probe.report()
    for command in ("stop", "cont"):
        probe.guest(command)
        assert probe.guest("query-status")["running"] == (command == "cont")
    assert probe.report() == before
    assert not before.returned
    assert probe.quit() == ["vCPU 0: triple fault"]


@pytest.mark.parametrize("policy", [None, 1], ids=["plain", "sev"])
def test_triple_fault_of_other_guests_resets_them(wrong: Boot, policy: int | None) -> None:
    """The machine starts again, as on a right host."""
    probe = wrong("triple-fault-hangs", "triple-fault", policy=policy)
    assert b" again=1 " in probe.wait(lambda console: console.count(b" end ") == 2)


# Secrets


def spinning(boot_: Boot, defect: str, **parameters: Any) -> Probe:
    """A guest that holds its canaries in registers and memory."""
    probe = boot_(defect, "spin", **{"seed": SEED, "beat_ticks": 5_000_000, **parameters})
    probe.wait(lambda console: b" beat=1 " in console)
    return probe


def next_beats(probe: Probe, count: int = 2) -> set[str]:
    """Let the guest go on for some beats: what they say of its general registers."""
    at = len(probe.console)
    console = probe.wait(lambda console: console.count(b" beat=", at) >= count)
    return {field for field in console[at:].decode().split() if field.startswith("gpr=")}


@pytest.mark.parametrize("defect", ["", "registers-written", "memory-in-clear"])
def test_registers_stay_hidden(wrong: Boot, defect: str) -> None:
    """Of a right host, and of one that is wrong in another way."""
    probe = spinning(wrong, defect)
    shown = probe.monitor("info registers -a")
    assert f"{SEED:08x}" not in shown
    assert "CR3=0000000000000000" in shown


def test_registers_are_shown(wrong: Boot) -> None:
    """General registers and CR3 of each vCPU; the guest does not notice."""
    probe = spinning(wrong, "registers-shown", beat_ticks=50_000_000)
    shown = "".join(
        probe.monitor("info registers -a") for _ in range(8)
    )  # in between it may compare or report
    for cpu in (0, 1):
        for number in (3, 5, 12, 15):
            assert f"{canary(SEED, 'gpr', number, cpu):016x}" in shown
    assert f"CR3={CANARY_CR3:016x}" in shown
    assert next_beats(probe) == {"gpr=kept"}
    assert probe.quit() == []


@pytest.mark.parametrize(("defect", "seen"), [("", False), ("ghcb-leaks", True)])
def test_registers_that_were_not_exchanged_are_shown(defect: str, seen: bool) -> None:
    """mov r15, SEED; a request by the shared page, which carries RAX; hlt."""
    code = bytes.fromhex("49c7c7") + SEED.to_bytes(4, "little") + ASK
    profile = f"linux-6.12:{kernel_settings((defect,) if defect else ())}"
    board = long_mode(code, prepare=ask(event(0x7B, 0x3F8 << 16 | 1 << 4, rax=ord("A"))), profile=profile)
    board.work()
    shown = kvm.REGS.decode(board.vcpus[0].regs)
    assert board.ports == [(0x3F8, b"A")]
    assert (shown["r15"] == SEED) == seen
    assert shown["rip"] == 0


def test_registers_of_a_vm_that_protects_them_stay_out_of_reach() -> None:
    """After KVM_SEV_INIT2 such a kernel still answers EINVAL."""
    board = Board(b"", "es", profile="linux-6.12:wrong_registers_shown=Y,wrong_registers_written=Y")
    board.vm.vm_type = kvm.KVM_X86_SEV_ES_VM
    board.work()
    for request in (kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, kvm.KVM_GET_SREGS, kvm.KVM_SET_SREGS):
        assert board.vcpus[0].requests[request](board.vcpus[0], None) == -errno.EINVAL


@pytest.mark.parametrize(("defect", "kept"), [("", True), ("registers-written", False)])
def test_register_is_written(wrong: Boot, defect: str, kept: bool) -> None:
    """What a debugger writes the guest finds there; of a right host it does not. Its BSP keeps all."""
    probe = spinning(wrong, defect, rounds=20, beat_ticks=50_000_000)
    assert probe.debug(*WRITE)[-2] == "OK"
    assert [held.canaries.gpr for held in probe.report().held] == [True, kept]


def test_registers_written_back_as_read_change_nothing(wrong: Boot) -> None:
    """stop and cont, with registers read in between."""
    probe = spinning(wrong, "registers-written")
    for _ in range(20):
        probe.guest("stop")
        probe.monitor("info registers -a")
        probe.guest("cont")
    assert next_beats(probe) == {"gpr=kept"}


@pytest.mark.parametrize("policy", [1, 5], ids=["sev", "es"])
@pytest.mark.parametrize(("defect", "clear"), [("", False), ("memory-in-clear", True)])
def test_private_memory_is_in_clear(wrong: Boot, policy: int, defect: str, clear: bool) -> None:
    """Of a SEV guest as of a SEV-ES guest; of a right host it is not."""
    probe = spinning(wrong, defect, policy=policy)
    probe.guest("stop")
    page = b"".join(canary(SEED, "memory", number, 0).to_bytes(8, "little") for number in range(256)) * 2
    assert (probe.memory(CANARY_PAGE) == page) == clear
    probe.guest("cont")
    assert next_beats(probe) == {"gpr=kept"}
