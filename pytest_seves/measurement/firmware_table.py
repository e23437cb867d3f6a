# SPDX-License-Identifier: GPL-2.0-or-later
"""What an OVMF image publishes for SEV-ES in the GUIDed table at its end.

Each entry of the table is its data, a u16 length (of data, length and GUID) and a GUID; it is read backwards
from the footer entry, whose GUID ends 0x20 bytes before the end of the image. Source: OvmfPkg in edk2.
It lives here because a launch digest depends on it: on where APs start and where the hashes table is.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pytest_seves.errors import FirmwareImageError
from pytest_seves.spec import ovmf

_GUID = 16
_HEAD = _GUID + 2  # an entry without data
_PAGE = 4096
#: Where edk2's Ia32X64 builds since edk2-stable202111 have their work area; X64 builds have it at 0x80B000.
_IA32X64_RESET = 0x808004


@dataclass(frozen=True)
class Area:
    """A range of guest memory that the firmware sets aside; 0/0 where the build has none."""

    base: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One entry of the table; `offset` is that of its data in the image."""

    guid: uuid.UUID
    offset: int
    data: bytes


@dataclass(frozen=True)
class FirmwareTable:
    """What the table says. None: not published.

    ``legacy``: the SEV-ES reset block stands alone, as in edk2-stable202008 and 202011.
    """

    size: int
    reset_address: int | None = None
    secret: Area | None = None
    hashes: Area | None = None
    sev_metadata_offset: int | None = None
    tdx_metadata_offset: int | None = None
    igvm: bool = False
    legacy: bool = False
    entries: tuple[Entry, ...] = ()

    @property
    def reset_cs_base(self) -> int | None:
        """Base of the code segment in which an AP starts."""
        return None if self.reset_address is None else self.reset_address & 0xFFFF0000

    @property
    def reset_ip(self) -> int | None:
        """Instruction pointer at which an AP starts."""
        return None if self.reset_address is None else self.reset_address & 0xFFFF


@dataclass(frozen=True)
class Verdict:
    """Whether an image can boot SEV-ES guests, and why; ``sure`` is False where the image leaves a doubt."""

    capable: bool
    reason: str
    sure: bool = True


def parse(data: bytes, *, size: int | None = None, where: str = "firmware") -> FirmwareTable:
    """Read the table of an image.

    :param data: the image, or its last bytes.
    :param size: bytes of the whole image, where `data` is only its end.
    :param where: what to call the image in an error.
    :raises FirmwareImageError: the image is too short, or its table contradicts itself.
    """
    size = len(data) if size is None else size
    return _Image(data, size, where).table()


def es_capable(table: FirmwareTable) -> Verdict:
    """Whether the image can boot a SEV-ES guest, as far as its end can tell.

    A published reset block is needed, but is not enough: builds with a 32-bit SEC (Ia32X64) publish one too
    and cannot run under SEV-ES.
    """
    if table.size % _PAGE:
        return Verdict(
            False, f"{table.size} bytes are not whole pages: the file is truncated, or no firmware image"
        )
    if table.reset_address is None:
        return Verdict(False, "no SEV-ES reset block: built without SEV-ES, or no OVMF at all")
    if table.reset_address == 0:
        return Verdict(False, "the SEV-ES reset block holds address 0: this build has no SEV-ES work area")
    address = f"APs start at {table.reset_address:#010x}"
    if table.sev_metadata_offset is not None:
        return Verdict(True, address)
    if table.reset_address == _IA32X64_RESET:
        layout = "no SEV metadata: an Ia32X64 build, whose 32-bit SEC cannot run under SEV-ES"
        return Verdict(False, f"{address}, but {layout}")
    age = "before edk2-stable202102" if table.legacy else "before 2022"
    return Verdict(True, f"{address}; no SEV metadata: an X64 build of {age}, or not OVMF", sure=False)


@dataclass(frozen=True)
class _Image:
    data: bytes
    size: int
    where: str

    def table(self) -> FirmwareTable:
        if self.size < ovmf.FOOTER_FROM_END + _HEAD or not 0 < len(self.data) <= self.size:
            raise self._error(
                0, f"an image of at least {ovmf.FOOTER_FROM_END + _HEAD} bytes", f"{self.size} bytes"
            )
        end = self.size - ovmf.FOOTER_FROM_END
        guid, length = self._head(end)
        if guid == ovmf.SEV_ES_RESET_BLOCK:
            return self._result((self._entry(end, end - self._start()),), legacy=True)
        if guid != ovmf.TABLE_FOOTER:
            return FirmwareTable(self.size)
        if not _HEAD <= length <= end:
            raise self._error(end - _HEAD, f"a table of {_HEAD} to {end} bytes", f"length {length}")
        return self._result(tuple(self._walk(end - _HEAD, length - _HEAD)))

    def _walk(self, end: int, left: int) -> list[Entry]:
        entries = []
        while left:
            entry = self._entry(end, left)
            entries.append(entry)
            end, left = entry.offset, left - len(entry.data) - _HEAD
        return entries

    def _entry(self, end: int, left: int) -> Entry:
        """The entry that ends at `end`, with `left` bytes of the table before that."""
        if left < _HEAD:
            raise self._error(
                end - left, f"an entry of at least {_HEAD} bytes", f"{left} bytes left in the table"
            )
        guid, length = self._head(end)
        if not _HEAD <= length <= left:
            raise self._error(end - _HEAD, f"entry {guid} to be {_HEAD} to {left} bytes", f"length {length}")
        return Entry(guid, end - length, self._bytes(end - length, length - _HEAD))

    def _head(self, end: int) -> tuple[uuid.UUID, int]:
        raw = self._bytes(end - _HEAD, _HEAD)
        return uuid.UUID(bytes_le=raw[2:]), int.from_bytes(raw[:2], "little")

    def _start(self) -> int:
        return self.size - len(self.data)

    def _bytes(self, offset: int, length: int) -> bytes:
        at = offset - self._start()
        if at < 0:
            raise self._error(
                offset, "the table within the bytes at hand", f"only the last {len(self.data)} bytes"
            )
        return self.data[at : at + length]

    def _result(self, entries: tuple[Entry, ...], legacy: bool = False) -> FirmwareTable:
        found: dict[uuid.UUID, Entry] = {}
        for entry in entries:
            found.setdefault(entry.guid, entry)  # QEMU too takes the one nearest to the end
        reset = self._words(found.get(ovmf.SEV_ES_RESET_BLOCK), 1)
        secret = self._words(found.get(ovmf.SEV_SECRET_BLOCK), 2)
        hashes = self._words(found.get(ovmf.SEV_HASH_TABLE), 2)
        sev = self._words(found.get(ovmf.SEV_METADATA), 1)
        tdx = self._words(found.get(ovmf.TDX_METADATA), 1)
        return FirmwareTable(
            self.size,
            reset_address=reset[0] if reset else None,
            secret=Area(*secret) if secret else None,
            hashes=Area(*hashes) if hashes else None,
            sev_metadata_offset=sev[0] if sev else None,
            tdx_metadata_offset=tdx[0] if tdx else None,
            igvm=ovmf.IGVM in found,
            legacy=legacy,
            entries=entries,
        )

    def _words(self, entry: Entry | None, count: int) -> tuple[int, ...]:
        if entry is None:
            return ()
        if len(entry.data) != 4 * count:
            raise self._error(
                entry.offset, f"{4 * count} bytes of data in {entry.guid}", f"{len(entry.data)} bytes"
            )
        return tuple(int.from_bytes(entry.data[at : at + 4], "little") for at in range(0, 4 * count, 4))

    def _error(self, offset: int, wanted: str, got: str) -> FirmwareImageError:
        return FirmwareImageError(
            f"{self.where}: GUIDed table at {offset:#x} of {self.size:#x}: wanted {wanted}; got {got}",
            offset=offset,
            wanted=wanted,
            got=got,
        )
