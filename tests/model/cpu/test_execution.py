# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest code under the machine's unmodified QEMU, on the model host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.host import ModelHost, ModelUnavailable
from tests.model.cpu import rom
from tests.model.driving import Guest

_DEADLINE_S = 20.0
POLICIES = {"es": 5, "sev": 1, "plain": None}
SHARED_RAM = "-object memory-backend-memfd,id=ram,size=128M,share=on"
Start = Callable[..., tuple[Guest, Path]]


@pytest.fixture
def start(launch: Callable[..., Guest], tmp_path: Path) -> Start:
    """Launch the test image, a SEV-ES guest with two vCPUs if not told otherwise; guest and console file."""
    image = tmp_path / "rom.bin"
    image.write_bytes(rom.image())
    numbers = iter(range(100))

    def run(kind: str = "es", extra: str = "", **options: Any) -> tuple[Guest, Path]:
        console = tmp_path / f"console{next(numbers)}"
        options.setdefault("vcpus", 2)
        arguments = {"policy": POLICIES[kind], "firmware": f"-bios {image}", **options}
        return launch(extra=f"-serial file:{console} {extra}", **arguments), console

    return run


def wait_for(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Until it holds; past the deadline the test fails with what there is instead."""
    end = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {_DEADLINE_S:.0f} s: {what()!r}")
        time.sleep(0.01)


def wait_for_console(console: Path, text: bytes = rom.CONSOLE) -> None:
    """Until the guest has written it."""

    def said() -> bytes:
        return console.read_bytes() if console.exists() else b""

    wait_for(lambda: text in said(), said)


def traces(host: ModelHost, count: int) -> list[dict[str, Any]]:
    """The last `count` guests of the host's log, which is written when a VM is gone."""

    def lines() -> list[str]:
        return host.guest_log.read_text().splitlines() if host.guest_log.exists() else []

    wait_for(lambda: len(lines()) >= count, lines)
    return [json.loads(line) for line in lines()[-count:]]


@pytest.mark.parametrize("vcpus", [2, 4])
@pytest.mark.parametrize("kind", list(POLICIES))
def test_guest_boots_and_starts_its_aps(start: Start, kind: str, vcpus: int) -> None:
    """Real, protected and long mode, ports, INIT and SIPI, for each kind of guest."""
    guest, console = start(kind, vcpus=vcpus)
    wait_for_console(console)
    assert guest.quit() == 0


@pytest.mark.parametrize("kind", list(POLICIES))
def test_guest_boots_from_memory_that_we_can_map(start: Start, kind: str) -> None:
    """RAM in a shared memfd, as a VMM with vhost-user has it."""
    guest, console = start(kind, extra=SHARED_RAM, machine="smm=off,memory-backend=ram")
    wait_for_console(console)
    assert guest.quit() == 0


def test_split_irqchip_starts_aps_too(start: Start) -> None:
    """The local APICs are the kernel's in either case."""
    guest, console = start(machine="smm=off,kernel_irqchip=split")
    wait_for_console(console)
    assert guest.quit() == 0


@pytest.mark.parametrize("kind", ["es", "plain"])
def test_same_launch_same_trace(start: Start, tmp_path: Path, kind: str) -> None:
    """Three launches, one hash of all exits up to the last character."""
    with ModelHost.start("linux-6.12", tmp_path / "host") as host:
        for _ in range(3):
            guest, console = start(kind, vcpus=3, on=host)
            wait_for_console(console)
            guest("query-status")
            assert guest.quit() == 0
        seen = traces(host, 3)
    assert len({json.dumps(trace["at_last_access"]) for trace in seen}) == 1, seen
    assert [vcpu["activity"] for vcpu in seen[0]["vcpus"]][1:] == [
        "RESET_HOLD" if kind == "es" else "HALTED"
    ] * 2


def memory(guest: Guest, address: int, tmp_path: Path) -> bytes:
    """A page of guest memory as QEMU has it."""
    file = tmp_path / "page"
    guest("pmemsave", val=address & -4096, size=4096, filename=str(file))
    return file.read_bytes()


@pytest.mark.parametrize("kind", list(POLICIES))
def test_private_memory_is_ciphertext_to_qemu(start: Start, tmp_path: Path, kind: str) -> None:
    """The canary shows only in a guest without encryption; stop brings QEMU's view up to date."""
    guest, console = start(kind)
    wait_for_console(console)
    guest("stop")
    page = memory(guest, rom.CANARY_ADDRESS, tmp_path)
    canary = rom.CANARY.to_bytes(8, "little")
    assert (canary in page) == (kind == "plain")
    assert page != bytes(4096)


def test_registers_of_an_es_guest_stay_hidden(start: Start) -> None:
    """QEMU reads what the GHCB carried, and control registers: no RIP, no RSP, no segment."""
    guest, console = start()
    wait_for_console(console)
    text = guest("human-monitor-command", **{"command-line": "info registers"})
    assert "EIP=00000000" in text
    assert "ESP=00000000" in text
    assert "CS =0000 00000000" in text
    assert "CR0=80000011" in text


def test_registers_of_a_plain_guest_are_live(start: Start) -> None:
    """The guest halts in its ROM, in long mode."""
    guest, console = start("plain")
    wait_for_console(console)
    text = guest("human-monitor-command", **{"command-line": "info registers"})
    assert "RIP=00000000ffff" in text
    assert "CR3=0000000000010000" in text


def test_stopped_guest_goes_on(start: Start) -> None:
    """stop and cont in the middle, with registers read and written back."""
    guest, console = start("plain", extra="-S")
    guest("cont")
    for _ in range(5):
        guest("stop")
        guest("human-monitor-command", **{"command-line": "info registers -a"})
        guest("cont")
    wait_for_console(console)
    assert guest.quit() == 0


def test_plain_guest_boots_again_after_a_reset(start: Start) -> None:
    """system_reset: registers, local APICs and vCPU states are set anew."""
    guest, console = start("plain")
    wait_for_console(console)
    guest("system_reset")
    wait_for_console(console, rom.CONSOLE * 2)
    assert guest.quit() == 0


def test_busy_firmware_lets_qemu_quit_at_once(launch: Callable[..., Guest]) -> None:
    """OVMF decompressing itself makes no exits; QEMU's kicks are answered all the same."""
    guest = launch()
    time.sleep(0.3)
    started = time.monotonic()
    assert guest.quit() == 0
    assert time.monotonic() - started < 2


def test_host_without_its_engine_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than vCPUs that silently stand still, an error that says what to do."""
    (tmp_path / "unicorn.py").write_text('__version__ = "9.9"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"needs unicorn 2\.1\.4, here is 9\.9.*:execute=N"):
        ModelHost.start()
    ModelHost.start("linux-6.1:execute=N").close()


def test_model_without_execution_stands_still(start: Start) -> None:
    """execute=N: KVM_RUN lasts until it is kicked."""
    with ModelHost.start("linux-6.1:execute=N") as host:
        guest, console = start(on=host)
        assert guest("query-status")["status"] == "running"
        assert guest.quit() == 0
        assert console.read_bytes() == b""
        assert not host.guest_log.exists()
