# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch digest, measurement, and the guest owner's session: pure arithmetic."""
