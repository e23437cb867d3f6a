# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests: what to launch, and the firmware they start with."""
