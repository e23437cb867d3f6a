# SPDX-License-Identifier: GPL-2.0-or-later
"""The program on the host: standard library only, Python >= 3.9, shipped as one file."""
