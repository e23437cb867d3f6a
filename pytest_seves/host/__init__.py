# SPDX-License-Identifier: GPL-2.0-or-later
"""Reaching a host: the lab inventory, SSH, and the client of the agent that runs there."""
