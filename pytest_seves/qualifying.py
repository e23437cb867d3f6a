# SPDX-License-Identifier: GPL-2.0-or-later
"""``--sev-report``: the controller's part. What is needed for it is looked for before the first test."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .errors import SevesError, UsageError
from .options import Options
from .report.levels import LEVELS
from .report.plan import NAME

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner


def prepare(config: pytest.Config, options: Options, folder: Path, catalogues: Iterable[Path]) -> None:
    """Put into the bundle, before it is sealed, what a report is judged by, now or later."""
    from .planned import plan

    paths = sorted(catalogues)
    if not paths:
        return
    (folder / NAME).write_text(plan(config, options, paths).to_json(), encoding="ascii")
    levels = paths[0].parent / LEVELS
    if levels.is_file():
        shutil.copyfile(levels, folder / LEVELS)


class Qualification:
    """Writes the report when the bundle is sealed; a plugin, which says where it is.

    :param report: the directory.
    :raise UsageError: something that it needs is not there, or the key cannot be used.
    """

    def __init__(self, options: Options, report: Path) -> None:
        from .report import commands

        commands.require()
        self._report = report
        self._lines: list[str] = []
        self._signer: CryptoSigner | None = None
        if options.artifacts and report.is_relative_to(options.artifacts):
            raise UsageError(
                f"--sev-report {report}: a report is not written into the evidence that it speaks of; "
                f"--sev-artifacts is {options.artifacts}"
            )
        if options.sign_key:
            self._signer = commands.signer(options.sign_key, options.sign_passphrase, "--sev-sign-passphrase")

    def write(self, folder: Path) -> bool:
        """Write it; False where the bundle does not allow that, which the summary says."""
        from .evidence.bundle import Bundle
        from .report import commands, qualify

        try:
            told = qualify.write(Bundle.open(folder, check=False), self._report, self._signer)
        except (SevesError, OSError) as error:
            self._lines = [f"no report: {error}"]
            return False
        self._lines = commands.told(told, self._report / qualify.PAGE)
        return True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Levels, and where the report is."""
        if self._lines:
            terminalreporter.section("qualification report")
            for line in self._lines:
                terminalreporter.write_line(line)
