# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run says: the catalogue of requirements and the verdicts on them."""
