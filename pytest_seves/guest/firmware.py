# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest firmware images: can this one boot SEV-ES guests, and where do its APs start?

The table at the end of an image is read by :mod:`pytest_seves.measurement.firmware_table`: the readiness
of a host and a launch digest depend on it too. These are its names for those who launch guests; images of
our own are made by :mod:`pytest_seves.guest.firmware_image`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pytest_seves.errors import FirmwareImageError
from pytest_seves.measurement.firmware_table import Area, Entry, FirmwareTable, Verdict, es_capable, parse
from pytest_seves.spec import ovmf

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

#: No table is longer: its length is 16 bits.
_LONGEST = 0xFFFF + ovmf.FOOTER_FROM_END


def parse_file(path: Path) -> FirmwareTable:
    """The table of an image file of this machine; only its end is read.

    :raises FirmwareImageError: it cannot be read, is no regular file, or its table contradicts itself.
    """
    try:
        size, end = _end_of(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FirmwareImageError(f"{path}: wanted a firmware image; got: {reason}", path=str(path)) from error
    return parse(end, size=size, where=str(path))


def _end_of(path: Path) -> tuple[int, bytes]:
    """The size of a file and its last bytes."""
    # A named pipe without a writer would keep a plain open waiting, and a device may never end.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise FirmwareImageError(
                f"{path}: wanted a firmware image; got no regular file, but {stat.filemode(found.st_mode)}",
                path=str(path),
            )
        start = max(found.st_size - _LONGEST, 0)
        return found.st_size, os.pread(file, _LONGEST, start)
    finally:
        os.close(file)
