# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of guests that are committed: they are what their sources give, or it is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from pytest_seves.errors import Unsupported
from pytest_seves.guest.linux import build as init
from pytest_seves.guest.payload import build as probe

#: With the tool that builds each.
BUILDS = {init: init.COMPILER, probe: "nasm"}
ALL = pytest.mark.parametrize("build", BUILDS, ids=["init", "probe"])
BUILT = pytest.mark.parametrize(
    "build",
    [
        pytest.param(
            build, id=name, marks=pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool} on PATH")
        )
        for name, (build, tool) in zip(("init", "probe"), BUILDS.items(), strict=True)
    ],
)


@BUILT
def test_it_is_reproducible(build: ModuleType) -> None:
    """Building the sources gives the committed bytes, every one."""
    assert build.build() == build.BINARY.read_bytes()


@BUILT
def test_a_stale_one_is_noticed(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check fails and says what to run; without it the program is written anew."""
    monkeypatch.setattr(build, "BINARY", tmp_path / "program.bin")
    build.BINARY.write_bytes(b"old")
    assert build.main(["--check"]) == 1
    assert "tox run -e payload" in capsys.readouterr().err
    assert build.BINARY.read_bytes() == b"old"
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


@ALL
def test_no_tool_is_a_skip_that_names_it(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing, that is said, with its package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported, match=f"no {BUILDS[build]} on PATH"):
        build.build()
