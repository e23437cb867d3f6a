# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest's first process, and the initramfs around it."""
