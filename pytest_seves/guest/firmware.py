# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest firmware images: can this one boot SEV-ES guests, and where do its APs start?

The table at the end of an image is read by :mod:`pytest_seves.measurement.firmware_table`: the readiness
of a host and a launch digest depend on it too. These are its names for those who launch guests.
"""

from __future__ import annotations

from pathlib import Path

from pytest_seves.errors import FirmwareImageError
from pytest_seves.measurement.firmware_table import Area, Entry, FirmwareTable, Verdict, es_capable, parse

__all__ = [
    "Area",
    "Entry",
    "FirmwareImageError",
    "FirmwareTable",
    "Verdict",
    "es_capable",
    "parse",
    "parse_file",
]


def parse_file(path: Path) -> FirmwareTable:
    """The table of an image file of this machine.

    :raises FirmwareImageError: it cannot be read, or its table contradicts itself.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FirmwareImageError(f"{path}: wanted a firmware image; got: {reason}", path=str(path)) from error
    return parse(data, where=str(path))
