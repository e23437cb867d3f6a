# SPDX-License-Identifier: GPL-2.0-or-later
"""A SEV-ES host in software, under the machine's own unmodified VMM: see README.md beside this file."""
