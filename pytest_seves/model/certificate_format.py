# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes of the SEV API's certificates (55766, appendix C)."""

from __future__ import annotations

CERTIFICATE_SIZE = 2084
CHAIN_SIZE = 3 * CERTIFICATE_SIZE  # PEK, OCA, CEK
