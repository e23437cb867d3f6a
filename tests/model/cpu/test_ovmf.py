# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's OVMF under the machine's QEMU, both unmodified, reaches the UEFI shell on the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.host import ModelHost
from tests.model.driving import Guest

PROMPT = b"Shell>"
_DEADLINE_S = 300.0
_RAM = "-object memory-backend-memfd,id=ram,size=256M,share=on -m 256 -machine pc,memory-backend=ram"


def boot(guest: Guest, console: Path, host: ModelHost) -> dict[str, Any]:
    """Wait for the prompt, end the VMM; the model's account of the guest."""
    before = len(host.guest_log.read_text().splitlines()) if host.guest_log.exists() else 0
    end = time.monotonic() + _DEADLINE_S
    while PROMPT not in (console.read_bytes() if console.exists() else b""):
        assert time.monotonic() < end, f"no {PROMPT!r} after {_DEADLINE_S:.0f} s"
        time.sleep(0.1)
    assert guest.quit() == 0
    while not (host.guest_log.exists() and len(host.guest_log.read_text().splitlines()) > before):
        assert time.monotonic() < end, f"nothing in {host.guest_log}"
        time.sleep(0.01)
    account: dict[str, Any] = json.loads(host.guest_log.read_text().splitlines()[-1])
    return account


@pytest.mark.slow
def test_ovmf_reaches_its_shell_the_same_way_twice(launch: Callable[..., Guest], tmp_path: Path) -> None:
    """Two boots of a guest without SEV on `pc` have the same exits, as far as the shorter one went."""
    with ModelHost.start("linux-6.1", tmp_path / "host") as host:
        accounts = []
        for number in range(2):
            console = tmp_path / f"console{number}"
            extra = f"{_RAM} -serial file:{console} -rtc base=2026-01-01"
            accounts.append(boot(launch(host, policy=None, extra=extra), console, host))
    seen = [account["checkpoints"] for account in accounts]
    shared = min(map(len, seen))
    assert shared > 5
    assert seen[0][:shared] == seen[1][:shared]
    assert not any(account["notes"] for account in accounts)
