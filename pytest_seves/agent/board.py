# SPDX-License-Identifier: GPL-2.0-or-later
"""What the board, its BIOS and the running kernel are called. Runs on the host (Python 3.9)."""

from __future__ import annotations

import struct
from typing import Dict, Optional

#: Files that every account may read, unlike serial numbers.
DMI = ("bios_vendor", "bios_version", "bios_date", "bios_release", "sys_vendor", "product_name", "board_name")
KERNEL_NOTES = "/sys/kernel/notes"
_NOTE_GNU_BUILD_ID = 3
_LONGEST = 65536


def dmi() -> Dict[str, str]:
    """Names by DMI; without those that the board does not tell."""
    found = {}
    for name in DMI:
        try:
            with open(f"/sys/class/dmi/id/{name}", encoding="utf-8", errors="replace") as file:
                found[name] = file.read(256).strip()
        except OSError:
            continue
    return found


def kernel_build_id() -> Optional[str]:
    """The hash of what the running kernel was built from, as its linker wrote it (ELF notes)."""
    with open(KERNEL_NOTES, "rb") as file:
        rest = file.read(_LONGEST)
    while len(rest) >= 12:
        name_size, size, kind = struct.unpack_from("<3I", rest)
        start = 12 + (name_size + 3 & ~3)
        if kind == _NOTE_GNU_BUILD_ID and rest[12 : 12 + name_size] == b"GNU\0":
            return rest[start : start + size].hex()
        rest = rest[start + (size + 3 & ~3) :]
    return None
