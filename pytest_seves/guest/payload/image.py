# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest with a command in it: what it is to do, patched into the image before it is uploaded.

The image publishes where its command block is by an entry of our own in the GUIDed table at its end. Another
command gives another launch digest, as another firmware would.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pytest_seves.errors import FirmwareImageError, UsageError
from pytest_seves.measurement.firmware_table import Entry, parse
from pytest_seves.spec import ovmf
from pytest_seves.spec.layout import Field, Layout

from .build import BINARY

#: Entry of the GUIDed table: offset of the command block from the end of the image, u32.
COMMAND_GUID = uuid.UUID("5e7e5c0d-8f3a-4d6b-9a21-50b7e1c4f2a6")
#: What the guest can do, by the numbers that its sources use; a report carries the name.
SCENARIOS = ("boot", "spin", "park", "terminate", "triple-fault", "reset", "storm")
#: RAM that the guest needs.
MEMORY_MIB = 64

_MAGIC = b"SEVESCMD"
_VERSION = 1
_COMMAND = Layout(
    "probe command",
    68,
    Field("magic", 0, "8s"),
    Field("version", 8, "H"),
    Field("size", 10, "H"),
    Field("scenario", 12, "I"),
    Field("cpus", 16, "I"),
    Field("sipi_vector", 20, "I"),
    Field("reset_address", 24, "I"),
    Field("rounds", 28, "I"),
    Field("flags", 32, "I"),
    Field("reason", 36, "I"),
    Field("seed_complement", 40, "I"),
    Field("tag", 44, "Q"),
    Field("timeout_ticks", 52, "Q"),
    Field("beat_ticks", 60, "Q"),
)
_FLAG_XAPIC, _FLAG_HOLD_MSR, _FLAG_NO_DR, _FLAG_RESET_KEYBOARD = 1, 2, 4, 8
#: The guest keeps this range of its memory free for a reset address; a stub of this size goes there.
_FREE = range(0x0080_0000, 0x00C0_0000)
_STUB = 0x40
_U32 = range(1 << 32)
_U64 = range(1 << 64)
_REBUILD = "run `tox run -e payload`"


def probe_image(
    scenario: str = "boot",
    *,
    cpus: int = 0,
    sipi_vector: int = 0x08,
    reset_address: int | None = None,
    rounds: int = 0,
    seed: int = 0xCA4A_5EE5,
    reason_set: int = 0,
    reason_code: int = 0,
    reset_by: Literal["cf9", "keyboard"] = "cf9",
    hold_by: Literal["page", "msr"] = "page",
    xapic: bool = False,
    debug_registers: bool = True,
    tag: int = 0,
    timeout_ticks: int = 20_000_000_000,
    beat_ticks: int = 100_000_000,
) -> bytes:
    """The image of the probe guest with this command; payload/README.md says what each scenario does.

    :param scenario: one of :data:`SCENARIOS`.
    :param cpus: how many vCPUs should come up; 0: as many as the VMM's fw_cfg says.
    :param sipi_vector: vector of the SIPI, 0x01 to 0x9F. A SEV-ES guest must not start there.
    :param reset_address: where the SEV-ES reset block says that APs start; None: in the image itself.
        Otherwise in 0x00800000 to 0x00BFFFFF: the BSP puts the code there before it wakes the APs.
    :param rounds: of ``spin`` (beats; 0: for ever), ``park`` (wakes) and ``storm``.
    :param seed: upper half of the canaries, see :func:`canary`; the image does not contain it.
    :param reason_set: of ``terminate``, 0 to 15, with `reason_code`, 0 to 255.
    :param reset_by: port 0xCF9, or the keyboard controller.
    :param hold_by: AP reset hold through the GHCB page, or by the MSR protocol where version 2 is in use.
    :param xapic: use the APIC's page even where CPUID offers x2APIC.
    :param debug_registers: ``spin`` puts canaries into DR0 to DR3.
    :param tag: comes back in the report.
    :param timeout_ticks: ticks of the TSC without progress after which a wait is given up.
    :param beat_ticks: ticks of the TSC between two looks at the canaries.
    :raise UsageError: a value that the guest cannot take.
    """
    if scenario not in SCENARIOS:
        raise UsageError(f"probe guest: no scenario {scenario!r}; there are {', '.join(SCENARIOS)}")
    for name, choice, known in (
        ("reset_by", reset_by, ("cf9", "keyboard")),
        ("hold_by", hold_by, ("page", "msr")),
    ):
        if choice not in known:
            raise UsageError(f"probe guest: {name}: wanted {' or '.join(known)}, got {choice!r}")
    _in("cpus", cpus, range(4097))
    _in("sipi_vector", sipi_vector, range(0x01, 0xA0))
    _in("reason_set", reason_set, range(16))
    _in("reason_code", reason_code, range(256))
    if beat_ticks >= timeout_ticks > 0:
        raise UsageError(f"probe guest: beat_ticks: wanted less than timeout_ticks, got {beat_ticks}")
    values = {
        "scenario": SCENARIOS.index(scenario),
        "cpus": cpus,
        "sipi_vector": sipi_vector,
        "rounds": _in("rounds", rounds, _U32),
        "flags": (
            _FLAG_XAPIC * xapic
            | _FLAG_HOLD_MSR * (hold_by == "msr")
            | _FLAG_NO_DR * (not debug_registers)
            | _FLAG_RESET_KEYBOARD * (reset_by == "keyboard")
        ),
        "reason": reason_set | reason_code << 4,
        "seed_complement": _in("seed", seed, _U32) ^ 0xFFFF_FFFF,
        "tag": _in("tag", tag, _U64),
        "timeout_ticks": _in("timeout_ticks", timeout_ticks, range(1, 1 << 63)),
        "beat_ticks": _in("beat_ticks", beat_ticks, range(1, 1 << 63)),
    }
    image = bytearray(BINARY.read_bytes())
    if reset_address is not None:
        values["reset_address"] = _reset_address(reset_address)
        _patch(image, _entry(image, ovmf.SEV_ES_RESET_BLOCK).offset, reset_address.to_bytes(4, "little"))
    at = _command_offset(image)
    _patch(image, at, _COMMAND.encode(**{**_built_command(image, at), **values}))
    return bytes(image)


def canary(seed: int, kind: Literal["gpr", "xmm", "memory"], number: int, cpu: int) -> int:
    """The 64-bit canary that the guest puts into a register, or repeats in a page of its memory.

    :param kind: general registers by their encoding (RAX 0, RCX 1, ...; RSP, 4, has none), XMM registers (the
        same in both halves), or word `number` modulo 256 of the BSP's page.
    """
    kinds = {"gpr": 1, "xmm": 2, "memory": 4}
    return seed << 32 | kinds[kind] << 24 | number << 16 | cpu


def canary_dr(seed: int, number: int, cpu: int) -> int:
    """The canary in DR0 to DR3: a canonical address."""
    return seed << 16 | 3 << 12 | number << 8 | cpu & 0xFF


#: The canary of CR3: where the page table lies while canaries are held.
CANARY_CR3 = 0x03BA_D000
#: Guest physical address of the page with canaries.
CANARY_PAGE = 0x03CA_F000


def _in(name: str, value: int, allowed: range) -> int:
    if value not in allowed:
        raise UsageError(
            f"probe guest: {name}: wanted {allowed.start:#x} to {allowed.stop - 1:#x}, got {value!r}"
        )
    return value


def _reset_address(address: int) -> int:
    if address not in _FREE or address + _STUB - 1 not in _FREE or (address & 0xFFFF) + _STUB > 0x1_0000:
        raise UsageError(
            f"probe guest: reset_address: wanted {_STUB} bytes in {_FREE.start:#010x} to "
            f"{_FREE.stop - 1:#010x} that cross no 64 KiB boundary, got {address:#x}"
        )
    return address


def _command_offset(image: bytearray) -> int:
    entry = _entry(image, COMMAND_GUID)
    offset = len(image) - int.from_bytes(entry.data, "little")
    if not 0 <= offset <= len(image) - _COMMAND.size:
        raise FirmwareImageError(f"{BINARY}: the command block would lie at {offset:#x}; {_REBUILD}")
    return offset


def _built_command(image: bytearray, at: int) -> dict[str, Any]:
    """The command block as it was built: what the host does not set keeps its value."""
    built = _COMMAND.decode(bytes(image[at : at + _COMMAND.size]))
    if (built["magic"], built["version"], built["size"]) != (_MAGIC, _VERSION, _COMMAND.size):
        raise FirmwareImageError(
            f"{BINARY}: command block at {at:#x}: "
            f"wanted {_MAGIC!r} version {_VERSION}, {_COMMAND.size} bytes; "
            f"got {built['magic']!r} version {built['version']}, {built['size']} bytes; {_REBUILD}"
        )
    return built


def _entry(image: bytearray, guid: uuid.UUID) -> Entry:
    for entry in parse(bytes(image), where=str(BINARY)).entries:
        if entry.guid == guid:
            return entry
    raise FirmwareImageError(f"{BINARY}: no entry {guid} in its table; {_REBUILD}")


def _patch(image: bytearray, at: int, data: bytes) -> None:
    image[at : at + len(data)] = data
