# SPDX-License-Identifier: GPL-2.0-or-later
"""What a firmware build and the BIOS settings decide."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FirmwareConfig:
    """One ASP's fixed properties.

    :param es: INIT was given the ES flag and its trusted memory region.
    :param es_asids: ASIDs 1 to this many are for SEV-ES (the BIOS's "SEV-ES ASID space limit" minus one).
    :param asids: the highest ASID.
    :param any_order: wrong on purpose: launch commands are taken in any order until LAUNCH_FINISH.
    :param in_clear: wrong on purpose: guests get a key that encrypts nothing.
    """

    api_major: int
    api_minor: int
    build: int
    es: bool
    es_asids: int
    asids: int
    any_order: bool = False
    in_clear: bool = False
