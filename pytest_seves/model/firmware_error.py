# SPDX-License-Identifier: GPL-2.0-or-later
"""How a firmware command fails."""

from __future__ import annotations

from ..spec.sev import FirmwareStatus, firmware_status_name


class FirmwareError(Exception):
    """A command ended with a status other than SUCCESS.

    :param wanted_length: for INVALID_LEN on an output buffer: the length that would do.
    """

    def __init__(self, status: FirmwareStatus, wanted_length: int | None = None) -> None:
        super().__init__(firmware_status_name(status))
        self.status = status
        self.wanted_length = wanted_length
