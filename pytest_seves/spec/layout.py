# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte layouts declared as the document's table declares them: name, offset, width."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union

Value = Union[int, bytes, tuple[int, ...], dict[str, Any]]


@dataclass(frozen=True)
class Field:
    """One row of a table.

    :param name: the document's own name; a leading underscore marks a reserved range.
    :param offset: bytes from the start of the structure.
    :param kind: a little-endian :mod:`struct` format without byte order (``"I"``, ``"4Q"``, ``"16s"``)
        or another :class:`Layout`.
    """

    name: str
    offset: int
    kind: Union[str, Layout]

    @property
    def size(self) -> int:
        """Width in bytes."""
        return self.kind.size if isinstance(self.kind, Layout) else struct.calcsize("<" + self.kind)


class Layout:
    """A structure in memory; little-endian, as everything in KVM, SEV and OVMF.

    Overlaps, gaps and a wrong total are refused when the layout is declared, unknown names and values
    out of range when it is used: :class:`ctypes.Structure` accepts all of these silently.

    >>> point = Layout("point", 8, Field("x", 0, "H"), Field("_pad", 2, "2s"), Field("y", 4, "I"))
    >>> point.encode(x=1, y=2).hex()
    '0100000002000000'
    >>> point.decode(bytes(8))
    {'x': 0, 'y': 0}
    >>> point.encode(z=1)
    Traceback (most recent call last):
    ...
    ValueError: point has no field 'z'
    """

    def __init__(self, name: str, size: int, *fields: Field) -> None:
        self.name = name
        self.size = size
        self.fields = fields
        self._by_name = {field.name: field for field in fields}
        if len(self._by_name) != len(fields):
            raise ValueError(f"{name}: a field name occurs twice")
        end = 0
        for field in fields:
            if field.offset != end:
                what = "overlaps" if field.offset < end else "leaves a gap before"
                raise ValueError(f"{name}.{field.name} at {field.offset:#x} {what} {end:#x}")
            end = field.offset + field.size
        if end != size:
            raise ValueError(f"{name}: fields end at {end:#x}, wanted {size:#x}")

    def field(self, name: str) -> Field:
        """The row called `name`.

        :raise ValueError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise ValueError(f"{self.name} has no field {name!r}") from None

    def encode(self, **values: Any) -> bytes:
        """Bytes of the structure; fields not given, and reserved ones, are zero.

        :raise ValueError: unknown name, or a value out of the field's range.
        """
        out = bytearray(self.size)
        for name, value in values.items():
            field = self.field(name)
            out[field.offset : field.offset + field.size] = self._pack(field, value)
        return bytes(out)

    def _pack(self, field: Field, value: Any) -> bytes:
        where = f"{self.name}.{field.name}"
        if isinstance(field.kind, Layout):
            return field.kind.encode(**value)
        if field.kind.endswith("s"):
            if not isinstance(value, bytes) or len(value) != field.size:
                raise ValueError(f"{where}: wanted {field.size} bytes, got {value!r}")
            return value
        numbers = value if isinstance(value, tuple) else (value,)
        try:
            return struct.pack("<" + field.kind, *numbers)
        except struct.error as error:
            raise ValueError(f"{where}: {value!r} does not fit: {error}") from None

    def decode(self, raw: bytes) -> dict[str, Any]:
        """Field names to values, in document order, reserved ranges left out.

        :raise ValueError: `raw` is not exactly :attr:`size` bytes.
        """
        if len(raw) != self.size:
            raise ValueError(f"{self.name}: wanted {self.size} bytes, got {len(raw)}")
        return {f.name: self._unpack(f, raw) for f in self.fields if not f.name.startswith("_")}

    @staticmethod
    def _unpack(field: Field, raw: bytes) -> Value:
        if isinstance(field.kind, Layout):
            return field.kind.decode(raw[field.offset : field.offset + field.size])
        values = struct.unpack_from("<" + field.kind, raw, field.offset)
        return values[0] if len(values) == 1 else values

    def flat(self, raw: bytes) -> Iterator[tuple[str, Value]]:
        """Dotted field names with their values, nested structures opened, reserved ranges included."""
        if len(raw) != self.size:
            raise ValueError(f"{self.name}: wanted {self.size} bytes, got {len(raw)}")
        for field in self.fields:
            if isinstance(field.kind, Layout):
                part = raw[field.offset : field.offset + field.size]
                for name, value in field.kind.flat(part):
                    yield f"{field.name}.{name}", value
            else:
                yield field.name, self._unpack(field, raw)

    def differences(self, wanted: bytes, got: bytes) -> list[tuple[str, Value, Value]]:
        """(field, wanted, got) of every field in which two structures differ, reserved ones too."""
        pairs = zip(self.flat(wanted), self.flat(got))
        return [(name, left, right) for (name, left), (_, right) in pairs if left != right]
