# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest: a bare-metal firmware image that says what each vCPU met. README.md describes it."""
