# SPDX-License-Identifier: GPL-2.0-or-later
"""What is installed: the wheel's content, its metadata and the entry points."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import pytest_seves


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the source tree by the declared back end."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "COPYING"):
        shutil.copy(project / name, tree)
    shutil.copytree(project / "pytest_seves", tree / "pytest_seves")
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    result = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's core metadata."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_every_file_of_the_package(project: Path, wheel: zipfile.ZipFile) -> None:
    """Sources, data files and py.typed: what lies below pytest_seves/ is in the wheel."""
    files = {
        str(path.relative_to(project))
        for path in (project / "pytest_seves").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(wheel.namelist())


@pytest.mark.parametrize("directory", ["suites/", "tests/", "lab/", "bench/"])
def test_wheel_leaves_the_clone_at_home(wheel: zipfile.ZipFile, directory: str) -> None:
    """Suites and lab are used from a clone; the wheel is the plugin alone."""
    assert not [name for name in wheel.namelist() if name.startswith(directory)]


def test_wheel_is_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    """Type checkers look for py.typed."""
    assert "pytest_seves/py.typed" in wheel.namelist()


def test_metadata_names_the_licence_and_carries_it(wheel: zipfile.ZipFile, metadata: Message) -> None:
    """The licence is an SPDX expression, and its text travels along."""
    assert metadata["License-Expression"] == "GPL-2.0-or-later"
    assert any(name.endswith("/COPYING") for name in wheel.namelist())


def test_version_is_the_package_s(metadata: Message) -> None:
    """One place states the version."""
    assert metadata["Version"] == pytest_seves.__version__


def test_installed_version_is_the_source_s() -> None:
    """An editable install that was made from another version is stale: run ./bootstrap again."""
    assert version("pytest-seves") == pytest_seves.__version__


@pytest.mark.parametrize(("group", "name"), [("pytest11", "seves"), ("console_scripts", "pytest-seves")])
def test_entry_point_loads(group: str, name: str) -> None:
    """What pytest and the shell look up exists."""
    (entry_point,) = entry_points(group=group, name=name)
    assert entry_point.load()
