# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware images of our own: what is built is what is read, and each variant is wrong in its own way."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_seves.errors import UsageError
from pytest_seves.guest import firmware_image as images
from pytest_seves.guest.firmware import Area, FirmwareImageError, FirmwareTable, es_capable, parse
from pytest_seves.guest.firmware_image import VARIANTS, build_image, build_variant, entry, guided_table
from pytest_seves.spec import ovmf

HUGE = {"huge", "huge-noise"}
SMALL = sorted(set(VARIANTS) - HUGE)
REFUSED = "GUIDed table at"


@pytest.mark.parametrize("size", [-images.BLOCK, 0, 1, 0x1000, images.BLOCK - 1, images.BLOCK + 0x1000])
def test_a_size_that_qemu_does_not_take_is_refused(size: int) -> None:
    """An image is a whole number of 64 KiB blocks, and at least one."""
    with pytest.raises(UsageError, match="wanted a multiple of 0x10000"):
        build_image(size=size)


def test_a_table_that_does_not_fit_is_refused() -> None:
    """Nothing of a table is cut off; one that just fits is taken."""
    room = images.BLOCK - ovmf.FOOTER_FROM_END
    assert build_image(bytes(room)).startswith(bytes(room))
    with pytest.raises(UsageError, match=f"wanted {room} bytes at most, got {room + 1}"):
        build_image(bytes(room + 1))


def test_nothing_to_fill_with_is_refused() -> None:
    """An empty filling never ends."""
    with pytest.raises(UsageError, match="wanted a byte or more"):
        build_image(fill=b"")


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_an_address_that_does_not_fit_is_refused(value: int) -> None:
    """The table holds 32 bits of each address."""
    with pytest.raises(UsageError, match=f"wanted a number of 32 bits, got {value}"):
        images.reset_block(value)


def test_a_length_that_does_not_fit_is_refused() -> None:
    """A lie has 16 bits too."""
    with pytest.raises(UsageError, match="wanted a number of 16 bits, got 65536"):
        guided_table(length=0x10000)


def test_a_variant_that_does_not_exist_is_refused() -> None:
    """The error lists those that do."""
    with pytest.raises(UsageError, match=r"no variant 'nice'; there are valid, .*, noise"):
        build_variant("nice")


@pytest.mark.parametrize("name", SMALL)
def test_a_variant_is_the_same_each_time(name: str) -> None:
    """Launch digests depend on every byte."""
    assert build_variant(name) == build_variant(name)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"empty-file", "truncated"}))
def test_qemu_takes_the_size(name: str) -> None:
    """Whole blocks, so that it is the table that decides."""
    raw = build_variant(name)
    assert raw
    assert len(raw) % images.BLOCK == 0


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"empty-file", "truncated", "truncated-tail"}))
def test_the_reset_vector_halts(name: str) -> None:
    """16 bytes before the end, where a vCPU starts: cli, hlt, jump back to the hlt."""
    assert build_variant(name)[-16:-12] == bytes.fromhex("fa f4 ebfd")


def test_variants_differ() -> None:
    """No two names for one image."""
    assert len({build_variant(name) for name in SMALL}) == len(SMALL)


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [
        ("valid", 0x80B004, "APs start at 0x0080b004"),
        ("reset-only", 0x80B004, "before 2022"),
        ("other-address", 0x123456, "APs start at 0x00123456"),
        ("high-address", 0xFFFFFFFF, "APs start at 0xffffffff"),
        ("two-blocks", 0x80B004, "APs start at 0x0080b004"),
        ("legacy", 0x80B004, "before edk2-stable202102"),
        ("large", 0x80B004, "APs start at 0x0080b004"),
        ("huge", 0x80B004, "APs start at 0x0080b004"),
        ("zero-address", 0, "address 0"),
        ("no-block", None, "no SEV-ES reset block"),
        ("empty-table", None, "no SEV-ES reset block"),
        ("no-table", None, "no SEV-ES reset block"),
        ("truncated", None, "no SEV-ES reset block"),
        ("truncated-tail", None, "no SEV-ES reset block"),
        ("noise", None, "no SEV-ES reset block"),
        ("huge-noise", None, "no SEV-ES reset block"),
        ("legacy-short", REFUSED, "wanted 4 bytes of data in 00f771de"),
        ("legacy-long", REFUSED, "got length 65535"),
        ("empty-file", REFUSED, "got 0 bytes"),
        ("entry-zero", REFUSED, "wanted entry 4c2eb361.* got length 0"),
        ("entry-short", REFUSED, "wanted entry 00f771de.* got length 17"),
        ("entry-bare", REFUSED, "got length"),
        ("entry-odd", REFUSED, "got length"),
        ("entry-wide", REFUSED, "wanted 4 bytes of data in 00f771de.* got 8 bytes"),
        ("entry-long", REFUSED, "wanted entry 00f771de.* got length 65535"),
        ("total-zero", REFUSED, "wanted a table of .* got length 0"),
        ("total-short", REFUSED, "wanted a table of .* got length 17"),
        ("total-inside", REFUSED, "wanted entry 00f771de.* to be 18 to 21 bytes; got length 22"),
        ("total-odd", REFUSED, "got 7 bytes left in the table"),
        ("total-beyond", REFUSED, "wanted a table of .* got length 65535"),
        ("overlap-after", REFUSED, "got length"),
        ("overlap-reset", REFUSED, "got length"),
        ("overlap-whole", REFUSED, "wanted 8 bytes of data in 4c2eb361.* got 30 bytes"),
    ],
)
def test_what_the_parser_says_of_a_variant(name: str, address: int | str | None, reason: str) -> None:
    """It reads an address or none, or refuses a table that contradicts itself."""
    raw = build_variant(name)
    if address == REFUSED:
        with pytest.raises(FirmwareImageError, match=f"{REFUSED} .*{reason}"):
            parse(raw)
        return
    table = parse(raw)
    assert table.reset_address == address
    assert reason in es_capable(table).reason


def test_the_areas_of_the_valid_image_are_read() -> None:
    """It publishes what OVMF does."""
    table = parse(build_variant("valid"))
    assert (table.secret, table.hashes) == (Area(0x810000, 0xC00), Area(0x810C00, 0x400))
    assert table.sev_metadata_offset == 0x52C


def _words(guid: uuid.UUID, count: int) -> st.SearchStrategy[tuple[uuid.UUID, bytes]]:
    return st.tuples(st.just(guid), st.binary(min_size=4 * count, max_size=4 * count))


_KNOWN = {
    ovmf.SEV_ES_RESET_BLOCK: 1,
    ovmf.SEV_SECRET_BLOCK: 2,
    ovmf.SEV_HASH_TABLE: 2,
    ovmf.SEV_METADATA: 1,
    ovmf.TDX_METADATA: 1,
}
_STRANGE = st.tuples(st.uuids().filter(lambda guid: guid not in _KNOWN), st.binary(max_size=300))
_ENTRIES = st.lists(
    st.one_of(_STRANGE, *(_words(guid, count) for guid, count in _KNOWN.items())), max_size=12
)


@settings(deadline=None)  # shared machines stall
@given(entries=_ENTRIES, blocks=st.integers(1, 3))
def test_any_table_that_is_built_is_read_back(entries: list[tuple[uuid.UUID, bytes]], blocks: int) -> None:
    """Every entry, in the order of reading, and the first of each kind counts."""
    raw = build_image(
        guided_table(*(entry(guid, data) for guid, data in entries)), size=blocks * images.BLOCK
    )
    table = parse(raw)
    assert [(found.guid, found.data) for found in table.entries] == entries[::-1]
    assert all(raw[found.offset :].startswith(found.data) for found in table.entries)
    last = {guid: [data[:4], data[4:]] for guid, data in entries}
    read = {
        guid: tuple(int.from_bytes(word, "little") for word in last[guid]) for guid in _KNOWN if guid in last
    }
    reset, metadata = read.get(ovmf.SEV_ES_RESET_BLOCK), read.get(ovmf.SEV_METADATA)
    secret, hashes = read.get(ovmf.SEV_SECRET_BLOCK), read.get(ovmf.SEV_HASH_TABLE)
    assert table.reset_address == (reset[0] if reset else None)
    assert table.sev_metadata_offset == (metadata[0] if metadata else None)
    assert table.secret == (Area(*secret) if secret else None)
    assert table.hashes == (Area(*hashes) if hashes else None)


@given(address=st.integers(0, 0xFFFFFFFF))
def test_any_address_is_split_as_an_ap_gets_it(address: int) -> None:
    """The low 16 bits are the instruction pointer, the rest is the base of the code segment."""
    table = parse(build_image(guided_table(images.reset_block(address))))
    assert (table.reset_cs_base, table.reset_ip) == (address & 0xFFFF0000, address & 0xFFFF)


_SMALLEST = {name: raw for name in SMALL if 0 < len(raw := build_variant(name)) <= 2 * images.BLOCK}


@settings(deadline=None)  # shared machines stall
@given(
    name=st.sampled_from(sorted(_SMALLEST)),
    at=st.integers(1, 200),
    wrong=st.binary(min_size=1, max_size=4),
    tail=st.none() | st.integers(1, 400),
)
def test_a_variant_with_wrong_bytes_gives_a_table_or_an_error(
    name: str, at: int, wrong: bytes, tail: int | None
) -> None:
    """Near the table, where each byte means something: never a crash, never a loop."""
    raw = bytearray(_SMALLEST[name])
    raw[-at : len(raw) - at + len(wrong)] = wrong
    try:
        table = parse(bytes(raw[-tail:] if tail else raw), size=len(raw))
    except FirmwareImageError:
        return
    assert isinstance(table, FirmwareTable)
    assert es_capable(table).reason
