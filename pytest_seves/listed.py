# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin of the process that :mod:`.planned` starts: writes down every test with a requirement."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from .report import catalogue

#: Names the file, in the environment of that process.
LISTED = "SEVES_LISTED"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Requirement by test, before anything is deselected: a wrapper comes before every other plugin."""
    tests = {}
    for item in items:
        marker = item.get_closest_marker("requirement")
        if marker and marker.args and catalogue.find(item.path.parent):
            tests[item.nodeid] = str(marker.args[0])
    Path(os.environ[LISTED]).write_text(json.dumps(tests), encoding="utf-8")
    yield
