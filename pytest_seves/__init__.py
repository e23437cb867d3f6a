# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify SEV-ES virtual machine monitors with pytest."""

__version__ = "0.1.0"
