# SPDX-License-Identifier: GPL-2.0-or-later
"""What both trees of tests share: suites/ (the product) and tests/ (the project's own)."""

from __future__ import annotations

# pytest allows this only in the topmost conftest.py. tests/ runs the plugin under test inside it.
pytest_plugins = ["pytester"]
