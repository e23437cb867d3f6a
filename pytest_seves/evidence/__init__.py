# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch left behind, decoded: pure functions of recorded bytes, no I/O."""
