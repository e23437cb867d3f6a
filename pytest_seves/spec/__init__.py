# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents say: constants and byte layouts, one module per document, no I/O.

Runs on Python 3.9 and imports nothing but the standard library: the agent carries it to the host.
"""
