# SPDX-License-Identifier: GPL-2.0-or-later
"""Where progress is told in a run: past pytest's capture of output, to whoever watches."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest

from .progress import SILENT, Progress


def progress(config: pytest.Config) -> Progress:
    """Progress of this process.

    The one process of a run, or xdist's controller, tells it among pytest's own lines. A worker of xdist has
    no terminal: it writes whole lines, with its name in front, to the stderr that it shares with the
    controller, and nothing where that is a terminal, which is the controller's to draw on. Where there are no
    tests (``--sev-check``) progress goes to stderr, since stdout has the table.
    """
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    own = not worker and not config.getoption("sev_check")
    live = (sys.stdout if own else sys.stderr).isatty()
    if worker and live:
        return SILENT

    def write(text: str) -> None:
        capture = config.pluginmanager.getplugin("capturemanager")
        reporter = config.pluginmanager.getplugin("terminalreporter")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if reporter is not None:
                reporter.ensure_newline()
            stream = sys.stdout if own else sys.stderr
            stream.write(f"{worker}: {text}" if worker else text)
            stream.flush()

    return Progress(write, live=live)
