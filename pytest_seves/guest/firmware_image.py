# SPDX-License-Identifier: GPL-2.0-or-later
"""Small firmware images with any GUIDed table, right or wrong, to see what a VMM makes of it.

An image is filled with HLT and ends in a reset vector that halts: it boots to nothing. The same arguments
give the same bytes, so launch digests can be computed from them. :data:`VARIANTS` are the images that a
requirement about the table needs; anything else is put together from the pieces.

Source: edk2 ``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm``; sizes as QEMU wants them for ``-bios``.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pytest_seves.errors import UsageError
from pytest_seves.spec import ovmf

#: QEMU takes whole multiples of this for ``-bios``; it is also the smallest image.
BLOCK = 0x10000
#: Where APs start in OVMF's X64 builds since edk2-stable202111, and somewhere that no OVMF has.
OVMF_ADDRESS = 0x0080B004
OTHER_ADDRESS = 0x00123456
#: An image of this size reaches down to 0xFC000000, over the address of the I/O APIC.
HUGE = 64 << 20

_HEAD = 18  # an entry without data: u16 length, GUID
_RESET_CODE = bytes(
    (
        0xFA,  # cli
        0xF4,  # hlt
        *(0xEB, 0xFD),  # jmp to the hlt: an NMI ends it
    )
)
_HLT = b"\xf4"  # hlt
_RESET_VECTOR = 0x10  # a vCPU starts this many bytes before the end of the image


def _u16(value: int) -> bytes:
    return _unsigned(value, 2)


def _u32(value: int) -> bytes:
    return _unsigned(value, 4)


def _unsigned(value: int, size: int) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise UsageError(f"firmware image: wanted a number of {8 * size} bits, got {value}")
    return value.to_bytes(size, "little")


def entry(guid: uuid.UUID, data: bytes = b"", *, length: int | None = None) -> bytes:
    """An entry of the table.

    :param length: what the entry says of its own length, where that is not to be true.
    """
    return data + _u16(len(data) + _HEAD if length is None else length) + guid.bytes_le


def reset_block(address: int, *, length: int | None = None) -> bytes:
    """The SEV-ES reset block: APs start at `address`."""
    return entry(ovmf.SEV_ES_RESET_BLOCK, _u32(address), length=length)


def secret_block(base: int, size: int, *, length: int | None = None) -> bytes:
    """The area for launch secrets."""
    return entry(ovmf.SEV_SECRET_BLOCK, _u32(base) + _u32(size), length=length)


def hashes_block(base: int, size: int, *, length: int | None = None) -> bytes:
    """The area for the hashes of kernel, initrd and command line."""
    return entry(ovmf.SEV_HASH_TABLE, _u32(base) + _u32(size), length=length)


def metadata_block(offset: int, *, length: int | None = None) -> bytes:
    """The SEV metadata of X64 builds, `offset` bytes before the end of the image."""
    return entry(ovmf.SEV_METADATA, _u32(offset), length=length)


def guided_table(*entries: bytes, length: int | None = None) -> bytes:
    """A table of these entries and its footer. It is read from its end: the last entry comes first.

    :param length: what the footer says of the length of the table, where that is not to be true.
    """
    body = b"".join(entries)
    return body + entry(ovmf.TABLE_FOOTER, length=len(body) + _HEAD if length is None else length)


def build_image(table: bytes = b"", *, size: int = BLOCK, fill: bytes = _HLT) -> bytes:
    """An image that halts, with these bytes where a table ends.

    :param table: as :func:`guided_table` makes it, or any other bytes.
    :param fill: what the rest is filled with, a byte or more, repeated.
    :raises UsageError: the size is no multiple of :data:`BLOCK`, or the table does not fit.
    """
    if size <= 0 or size % BLOCK:
        raise UsageError(f"size of a firmware image: wanted a multiple of {BLOCK:#x}, got {size:#x}")
    if not fill:
        raise UsageError("fill of a firmware image: wanted a byte or more, got none")
    room = size - ovmf.FOOTER_FROM_END
    if len(table) > room:
        raise UsageError(f"table of a firmware image: wanted {room} bytes at most, got {len(table)}")
    before = room - len(table)
    padding = (fill * (before // len(fill) + 1))[:before]
    end = _HLT * (ovmf.FOOTER_FROM_END - _RESET_VECTOR) + _RESET_CODE.ljust(_RESET_VECTOR, _HLT)
    return padding + table + end


@dataclass(frozen=True)
class Variant:
    """An image by name. `about` says what is the matter with its table."""

    name: str
    about: str
    build: Callable[[], bytes]


_RESET = reset_block(OVMF_ADDRESS)
_SECRET = secret_block(0x810000, 0xC00)
_HASHES = hashes_block(0x810C00, 0x400)
_METADATA = metadata_block(0x52C)
#: The other entries of a table, in the order of OVMF's.
_OTHERS = (_METADATA, _HASHES, _SECRET)


def _whole(reset: bytes = _RESET, size: int = BLOCK) -> bytes:
    return build_image(guided_table(*_OTHERS, reset), size=size)


def _alone(length: int | None = None) -> bytes:
    return build_image(reset_block(OVMF_ADDRESS, length=length))


def _total(length: int) -> bytes:
    return build_image(guided_table(*_OTHERS, _RESET, length=length))


def _noise(size: int) -> bytes:
    """Bytes without a pattern, the same ones each time; the code at the end still halts."""
    return build_image(size=size, fill=hashlib.shake_128(b"firmware").digest(min(size, 1 << 20)))


def _over(reach: int) -> bytes:
    """A secret block that says it is `reach` bytes longer than its data."""
    return secret_block(0x810000, 0xC00, length=len(_SECRET) + reach)


_ALL = (
    Variant("valid", "a SEV-ES reset block, secret, hashes and metadata, as an X64 OVMF has them", _whole),
    Variant(
        "reset-only", "the SEV-ES reset block is the only entry", lambda: build_image(guided_table(_RESET))
    ),
    Variant("other-address", "APs start elsewhere", lambda: _whole(reset_block(OTHER_ADDRESS))),
    Variant("high-address", "APs start at the last address", lambda: _whole(reset_block(0xFFFFFFFF))),
    Variant("zero-address", "the reset block holds address 0", lambda: _whole(reset_block(0))),
    Variant(
        "two-blocks",
        "a second reset block further from the end, with another address",
        lambda: build_image(guided_table(reset_block(OTHER_ADDRESS), *_OTHERS, _RESET)),
    ),
    Variant("no-block", "a table, but no reset block in it", lambda: build_image(guided_table(*_OTHERS))),
    Variant("empty-table", "a footer and nothing else", lambda: build_image(guided_table())),
    Variant("no-table", "no footer, no table", build_image),
    Variant("legacy", "the reset block in the place of the footer, as before edk2-stable202102", _alone),
    Variant(
        "legacy-short", "as legacy, and the block says it is shorter than its data", lambda: _alone(_HEAD)
    ),
    Variant(
        "legacy-long", "as legacy, and the block says it is longer than the image", lambda: _alone(0xFFFF)
    ),
    Variant("empty-file", "not one byte", lambda: b""),
    Variant("truncated", "the last page is missing", lambda: _whole()[:-0x1000]),
    Variant("truncated-tail", "the last 64 KiB are missing", lambda: _whole(size=2 * BLOCK)[:BLOCK]),
    Variant(
        "entry-zero",
        "an entry read before the reset block says its length is 0",
        lambda: build_image(guided_table(_RESET, secret_block(0, 0, length=0))),
    ),
    Variant(
        "entry-short",
        "the reset block says it is shorter than an entry without data",
        lambda: _whole(reset_block(OVMF_ADDRESS, length=_HEAD - 1)),
    ),
    Variant(
        "entry-bare",
        "the reset block says it has no data",
        lambda: _whole(reset_block(OVMF_ADDRESS, length=_HEAD)),
    ),
    Variant(
        "entry-odd",
        "the reset block says it has 3 bytes of data",
        lambda: _whole(reset_block(OVMF_ADDRESS, length=_HEAD + 3)),
    ),
    Variant(
        "entry-wide",
        "the reset block has 4 bytes of zero behind its address",
        lambda: _whole(entry(ovmf.SEV_ES_RESET_BLOCK, _u32(OVMF_ADDRESS) + bytes(4))),
    ),
    Variant(
        "entry-long",
        "the reset block says it is longer than the table",
        lambda: _whole(reset_block(OVMF_ADDRESS, length=0xFFFF)),
    ),
    Variant("total-zero", "the footer says the table has length 0", lambda: _total(0)),
    Variant("total-short", "the footer says the table is shorter than the footer", lambda: _total(_HEAD - 1)),
    Variant("total-inside", "the footer's length ends inside the reset block", lambda: _total(_HEAD + 21)),
    Variant(
        "total-odd",
        "the footer's length ends inside the entry after the reset block",
        lambda: _total(_HEAD + len(_RESET) + 7),
    ),
    Variant("total-beyond", "the footer says the table is longer than the image", lambda: _total(0xFFFF)),
    Variant(
        "overlap-after",
        "an entry read after the reset block reaches into its neighbour",
        lambda: build_image(guided_table(_METADATA, _HASHES, _over(10), _RESET)),
    ),
    Variant(
        "overlap-reset",
        "an entry reaches into the reset block",
        lambda: build_image(guided_table(_METADATA, _HASHES, _RESET, _over(10))),
    ),
    Variant(
        "overlap-whole",
        "an entry covers the whole reset block",
        lambda: build_image(guided_table(_METADATA, _HASHES, _RESET, _over(len(_RESET)))),
    ),
    Variant(
        "large", "valid, in 16 MiB: more than QEMU takes as flash by default", lambda: _whole(size=16 << 20)
    ),
    Variant("huge", "valid, in 64 MiB", lambda: _whole(size=HUGE)),
    Variant("noise", "bytes without a pattern, no table", lambda: _noise(BLOCK)),
    Variant("huge-noise", "64 MiB of bytes without a pattern", lambda: _noise(HUGE)),
)

#: Every image by its name; built when asked for.
VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _ALL})


def build_variant(name: str) -> bytes:
    """One of :data:`VARIANTS`.

    :raises UsageError: there is none of this name.
    """
    if name not in VARIANTS:
        raise UsageError(f"firmware image: no variant {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name].build()
