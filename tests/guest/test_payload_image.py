# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host writes into the probe guest's image before it is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import FirmwareImageError, UsageError
from pytest_seves.guest.firmware import parse
from pytest_seves.guest.payload import image as payload
from pytest_seves.guest.payload.build import BINARY
from pytest_seves.guest.payload.image import canary, canary_dr, probe_image


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scenario": "dance"}, "no scenario 'dance'; there are boot, spin"),
        ({"cpus": 4097}, "cpus: wanted 0x0 to 0x1000, got 4097"),
        ({"cpus": -1}, "cpus: wanted"),
        ({"sipi_vector": 0}, "sipi_vector: wanted 0x1 to 0x9f, got 0"),
        ({"sipi_vector": 0xA0}, "sipi_vector: wanted"),
        ({"reset_address": 0}, "reset_address: wanted 64 bytes in 0x00800000 to 0x00bfffff"),
        ({"reset_address": 0x007FFFF0}, "reset_address: wanted"),
        ({"reset_address": 0x0080FFE0}, "that cross no 64 KiB boundary, got 0x80ffe0"),
        ({"reset_address": 0x00BFFFF0}, "reset_address: wanted"),
        ({"rounds": 1 << 32}, "rounds: wanted"),
        ({"seed": -1}, "seed: wanted"),
        ({"reason_set": 16}, "reason_set: wanted 0x0 to 0xf, got 16"),
        ({"reason_code": 256}, "reason_code: wanted"),
        ({"reset_by": "hammer"}, "reset_by: wanted cf9 or keyboard, got 'hammer'"),
        ({"hold_by": "hand"}, "hold_by: wanted page or msr"),
        ({"tag": 1 << 64}, "tag: wanted"),
        ({"timeout_ticks": 0}, "timeout_ticks: wanted"),
        ({"beat_ticks": 0}, "beat_ticks: wanted"),
        ({"beat_ticks": 10, "timeout_ticks": 10}, "beat_ticks: wanted less than timeout_ticks"),
    ],
)
def test_what_the_guest_cannot_take_is_refused(parameters: dict[str, Any], message: str) -> None:
    """The error names the parameter, what is allowed and what was given."""
    with pytest.raises(UsageError, match=f"probe guest: .*{message}"):
        probe_image(**parameters)


def test_the_plain_call_changes_the_command_alone() -> None:
    """Everything outside the command block is as built, so that launches differ by what they ask for."""
    before, after = BINARY.read_bytes(), probe_image("spin", rounds=7, cpus=3)
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    command = before.index(b"SEVESCMD")
    assert changed
    assert min(changed) >= command
    assert max(changed) < command + 68


def test_the_same_call_gives_the_same_bytes() -> None:
    """A launch digest can be computed from the arguments."""
    assert probe_image("park", rounds=3, tag=9) == probe_image("park", rounds=3, tag=9)
    assert probe_image(tag=1) != probe_image(tag=2)


def test_another_reset_address_is_published() -> None:
    """The SEV-ES reset block says where the guest will put the code."""
    assert parse(probe_image(reset_address=0x0080B004)).reset_address == 0x0080B004


@pytest.mark.parametrize("seed", [0xCA4A5EE5, 0x12345678])
def test_the_image_does_not_give_canaries_away(seed: int) -> None:
    """Who finds a canary outside the guest did not find it in the firmware file."""
    image = probe_image("spin", seed=seed)
    values = [canary(seed, kind, number, 0) for kind in ("gpr", "xmm", "memory") for number in range(16)]
    values += [canary_dr(seed, number, 0) for number in range(4)]
    assert not [value for value in values if value.to_bytes(8, "little") in image]


def test_canaries_differ() -> None:
    """Kind, number and vCPU can be told from the value."""
    values = [
        canary(1, kind, number, cpu)
        for kind in ("gpr", "xmm", "memory")
        for number in range(256)
        for cpu in range(4)
    ]
    assert len(set(values)) == len(values)
    assert canary(0xAABBCCDD, "xmm", 5, 3) == 0xAABBCCDD_02050003
    assert canary_dr(0xAABBCCDD, 2, 3) == 0x0000AABBCCDD3203


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"SEVESCMD", b"SOMEWHAT"), "wanted b'SEVESCMD' version 1"),
        ((payload.COMMAND_GUID.bytes_le, bytes(16)), "no entry 5e7e5c0d"),
    ],
    ids=["magic", "guid"],
)
def test_an_image_of_another_version_is_refused(
    change: tuple[bytes, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command is never written into bytes that are none, and the error says how to build the image anew."""
    broken = tmp_path / "probe.bin"
    broken.write_bytes(BINARY.read_bytes().replace(*change))
    monkeypatch.setattr(payload, "BINARY", broken)
    with pytest.raises(FirmwareImageError, match=message) as caught:
        probe_image()
    assert "tox run -e payload" in str(caught.value)
