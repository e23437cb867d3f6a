# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware images: real ones as a distribution ships them, and every way for a table to be wrong."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_seves.guest import firmware
from pytest_seves.guest.firmware import Area, FirmwareImageError, FirmwareTable, es_capable, parse
from pytest_seves.spec import ovmf

SIZE = 0x10000


def entry(guid: uuid.UUID, data: bytes, length: int | None = None) -> bytes:
    """An entry of the table, with a length of one's own where that is the point."""
    return data + (len(data) + 18 if length is None else length).to_bytes(2, "little") + guid.bytes_le


def word(*values: int) -> bytes:
    """Little-endian 32-bit words."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def image(*entries: bytes, total: int | None = None, size: int = SIZE) -> bytes:
    """An image that ends in a table of these entries; the first is the lowest."""
    body = b"".join(entries)
    table = body + entry(ovmf.TABLE_FOOTER, b"", len(body) + 18 if total is None else total)
    return (table + b"\x90" * 0x20).rjust(size, b"\xff")


RESET = entry(ovmf.SEV_ES_RESET_BLOCK, word(0x0080B004))
METADATA = entry(ovmf.SEV_METADATA, word(0x52C))


@pytest.mark.parametrize(
    ("raw", "offset", "wanted"),
    [
        (b"", 0, "an image of at least 50 bytes; got 0 bytes"),
        (b"\xff" * 49, 0, "an image of at least 50 bytes; got 49 bytes"),
        (image(RESET, total=0), SIZE - 0x32, "a table of 18 to 65504 bytes; got length 0"),
        (image(RESET, total=17), SIZE - 0x32, "a table of 18 to 65504 bytes; got length 17"),
        (image(RESET, total=0xFFFF), SIZE - 0x32, "a table of 18 to 65504 bytes; got length 65535"),
        (image(RESET, total=39), SIZE - 0x32 - 18, "entry 00f771de"),
        (image(b"12345678", RESET), SIZE - 0x32 - 22 - 8, "an entry of at least 18 bytes; got 8 bytes left"),
        (image(entry(ovmf.SEV_METADATA, word(1), 0), RESET), SIZE - 0x32 - 22 - 18, "got length 0"),
        (image(entry(ovmf.SEV_METADATA, word(1), 0xFFFF), RESET), SIZE - 0x32 - 22 - 18, "got length 65535"),
        (image(entry(ovmf.SEV_ES_RESET_BLOCK, b"")), SIZE - 0x32 - 18, "4 bytes of data in 00f771de"),
        (image(entry(ovmf.SEV_SECRET_BLOCK, word(1))), SIZE - 0x32 - 22, "8 bytes of data in 4c2eb361"),
        (entry(ovmf.SEV_ES_RESET_BLOCK, b"", 99) + bytes(0x20), 0, "entry 00f771de"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(raw: bytes, offset: int, wanted: str) -> None:
    """The error says where in the image, what was wanted and what is there."""
    with pytest.raises(FirmwareImageError, match="GUIDed table at") as caught:
        parse(raw, where="x.fd")
    assert str(caught.value).startswith(f"x.fd: GUIDed table at {offset:#x} of {len(raw):#x}: wanted ")
    assert wanted in str(caught.value)
    assert caught.value.evidence["offset"] == offset


def test_a_table_longer_than_the_bytes_at_hand_is_refused() -> None:
    """With the last bytes only, a longer table is an error, never half a table."""
    raw = image(*[entry(uuid.UUID(int=n), bytes(200)) for n in range(5)])
    with pytest.raises(FirmwareImageError, match="only the last 512 bytes"):
        parse(raw[-512:], size=len(raw))


def test_more_bytes_than_the_image_has_are_refused() -> None:
    """A size that contradicts the data is an error of the caller's evidence."""
    with pytest.raises(FirmwareImageError, match="wanted an image"):
        parse(image(RESET), size=100)


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_an_image_without_a_table_publishes_nothing(fill: bytes) -> None:
    """No OVMF, or an older one: no error, but no SEV-ES."""
    table = parse(fill * SIZE)
    assert table == FirmwareTable(SIZE)
    assert es_capable(table).reason.startswith("no SEV-ES reset block")


@pytest.mark.parametrize(
    ("raw", "capable", "sure", "reason"),
    [
        (image(METADATA, RESET), True, True, "APs start at 0x0080b004"),
        (image(METADATA, entry(ovmf.SEV_ES_RESET_BLOCK, word(0))), False, True, "address 0"),
        (image(METADATA), False, True, "no SEV-ES reset block"),
        (image(entry(ovmf.SEV_ES_RESET_BLOCK, word(0x808004))), False, True, "Ia32X64"),
        (image(RESET), True, False, "before 2022"),
        (image(METADATA, RESET, size=SIZE - 1), False, True, "not whole pages"),
        (RESET.rjust(SIZE - 0x20, b"\xff") + bytes(0x20), True, False, "before edk2-stable202102"),
    ],
)
def test_whether_an_image_can_do_sev_es(raw: bytes, capable: bool, sure: bool, reason: str) -> None:
    """A published reset block is needed, but not enough; a doubt is told."""
    verdict = es_capable(parse(raw))
    assert (verdict.capable, verdict.sure) == (capable, sure)
    assert reason in verdict.reason


def test_every_known_entry_is_read() -> None:
    """Addresses, sizes and order are those of the image; an unknown GUID is kept and does no harm."""
    strange = uuid.UUID(int=7)
    table = parse(
        image(
            entry(ovmf.IGVM, b"abc"),
            entry(strange, b""),
            entry(ovmf.TDX_METADATA, word(0x333)),
            METADATA,
            entry(ovmf.SEV_HASH_TABLE, word(0x810C00, 0x400)),
            entry(ovmf.SEV_SECRET_BLOCK, word(0x810000, 0xC00)),
            RESET,
        )
    )
    assert (table.reset_address, table.reset_cs_base, table.reset_ip) == (0x80B004, 0x800000, 0xB004)
    assert (table.secret, table.hashes) == (Area(0x810000, 0xC00), Area(0x810C00, 0x400))
    assert (table.sev_metadata_offset, table.tdx_metadata_offset) == (0x52C, 0x333)
    assert (table.igvm, table.legacy) == (True, False)
    assert [found.guid for found in table.entries][-2:] == [strange, ovmf.IGVM]


def test_of_two_reset_blocks_the_last_counts() -> None:
    """As for QEMU, which reads backwards and stops at the first that it finds."""
    assert parse(image(entry(ovmf.SEV_ES_RESET_BLOCK, word(0x1000)), RESET)).reset_address == 0x80B004


def test_a_block_that_stands_alone_is_read() -> None:
    """edk2-stable202008 and 202011 had the reset block in the place of the footer."""
    table = parse(RESET.rjust(SIZE - 0x20, b"\xff") + bytes(0x20))
    assert (table.reset_address, table.legacy) == (0x80B004, True)


@pytest.mark.parametrize(
    ("path", "reset", "metadata", "capable"),
    [
        ("/usr/share/OVMF/OVMF_CODE.fd", 0x80B004, True, True),
        ("/usr/share/OVMF/OVMF_CODE.secboot.fd", 0x80B004, True, True),
        ("/usr/share/ovmf/OVMF.fd", 0x80B004, True, True),
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", 0x808004, False, False),
        ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", 0x808004, False, False),
        ("/usr/share/OVMF/OVMF_VARS.fd", None, False, False),
    ],
)
def test_the_images_of_debian_12(path: str, reset: int | None, metadata: bool, capable: bool) -> None:
    """ovmf 2022.11-6: the 2M images can do SEV-ES; the 4M ones publish a reset block and cannot (Ia32X64)."""
    try:
        release = Path("/etc/debian_version").read_text()
        raw = Path(path).read_bytes()
    except OSError as error:
        pytest.skip(f"not a Debian with ovmf: {error}")
    if not release.startswith("12."):
        pytest.skip(f"the values are of Debian 12, this is {release.strip()}")
    table = firmware.parse_file(Path(path))
    assert (table.reset_address, table.sev_metadata_offset is not None) == (reset, metadata)
    assert es_capable(table).capable is capable
    assert parse(raw[-8192:], size=len(raw)) == table
    if reset is not None:
        assert table.secret == table.hashes == Area(0, 0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The path and the system's reason are in the error."""
    with pytest.raises(FirmwareImageError, match=r"absent\.fd: wanted a firmware image; got: No such file"):
        firmware.parse_file(tmp_path / "absent.fd")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """It is no image, and the error names it."""
    path = tmp_path / "empty.fd"
    path.touch()
    with pytest.raises(
        FirmwareImageError, match=r"empty\.fd: .* wanted an image of at least 50 bytes; got 0"
    ):
        firmware.parse_file(path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "d"),
        (os.mkfifo, "p"),
        (lambda path: path.symlink_to("/dev/zero"), "c"),
    ],
    ids=["directory", "pipe that nobody writes to", "device without an end"],
)
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object], kind: str
) -> None:
    """At once, and the error says what it is."""
    path = tmp_path / "x.fd"
    make(path)
    with pytest.raises(FirmwareImageError, match=rf"x\.fd: .* got no regular file, but {kind}"):
        firmware.parse_file(path)


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """With the reason of the system: a link to itself, a file in the place of a directory."""
    loop = tmp_path / "loop.fd"
    loop.symlink_to(loop)
    with pytest.raises(FirmwareImageError, match="Too many levels of symbolic links"):
        firmware.parse_file(loop)
    (tmp_path / "file").touch()
    with pytest.raises(FirmwareImageError, match="Not a directory"):
        firmware.parse_file(tmp_path / "file" / "x.fd")


def test_of_a_huge_file_only_the_end_is_read(tmp_path: Path) -> None:
    """A terabyte, of which nearly all is a hole."""
    path = tmp_path / "huge.fd"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(-SIZE, os.SEEK_END)
        file.write(image(METADATA, RESET))
    table = firmware.parse_file(path)
    assert (table.size, table.reset_address, table.sev_metadata_offset) == (1 << 40, 0x80B004, 0x52C)


def test_the_longest_table_is_read_from_a_file(tmp_path: Path) -> None:
    """65535 bytes, as many as its length can say."""
    longest = entry(uuid.UUID(int=7), bytes(0xFFFF - 2 * 18 - len(RESET)))
    path = tmp_path / "longest.fd"
    path.write_bytes(image(longest, RESET, size=0x20000))
    table = firmware.parse_file(path)
    assert sum(len(found.data) + 18 for found in table.entries) + 18 == 0xFFFF
    assert table == parse(path.read_bytes())


_GUIDS = st.sampled_from([value for value in vars(ovmf).values() if isinstance(value, uuid.UUID)])
_LENGTHS = st.none() | st.integers(0, 0xFFFF)
_ENTRIES = st.builds(entry, _GUIDS, st.binary(max_size=12), _LENGTHS)


@settings(deadline=None)  # shared machines stall
@given(raw=st.binary(max_size=400))
@example(raw=entry(ovmf.TABLE_FOOTER, b"", 18) + bytes(0x20))
def test_any_bytes_give_a_table_or_an_error(raw: bytes) -> None:
    """Never a crash, never a loop."""
    try:
        assert parse(raw).size == len(raw)
    except FirmwareImageError:
        return


@settings(deadline=None)  # shared machines stall
@given(entries=st.lists(_ENTRIES, max_size=6), total=_LENGTHS, cut=st.integers(0, 200))
def test_any_table_gives_a_table_or_an_error(entries: list[bytes], total: int | None, cut: int) -> None:
    """Lengths that lie, entries that repeat, a tail cut short: a table with a verdict, or an error."""
    raw = image(*entries, total=total, size=4096)
    try:
        table = parse(raw[-max(cut, 1) :] if cut else raw, size=len(raw))
    except FirmwareImageError:
        return
    assert sum(len(found.data) + 18 for found in table.entries) <= len(raw)
    assert es_capable(table).reason
