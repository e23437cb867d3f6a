# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue: malformed files are refused with the place, and the real ones are whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_seves.errors import UsageError
from pytest_seves.report import catalogue
from pytest_seves.report.catalogue import KnownDefect

ENTRY = '[[requirement]]\nid = "X-1"\nlevel = "must"\nsentence = "s"\nsource = "d"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[requirement]\n", "cannot be read"),
        ("[other]\n", r"wanted nothing but \[\[requirement\]\]"),
        (ENTRY + 'colour = "red"\n', "X-1: unknown key colour; there are"),
        (ENTRY.replace("X-1", "x1"), "wanted FAMILY-NUMBER"),
        (ENTRY.replace("must", "may"), "wanted 'must' or 'should'"),
        (ENTRY.replace('source = "d"\n', ""), "X-1: .*source"),
        (ENTRY + ENTRY, "X-1 occurs twice"),
    ],
)
def test_a_malformed_catalogue_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Each mistake names the file and the entry."""
    path = tmp_path / "requirements.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        catalogue.load(path)


def test_the_catalogue_is_found_from_below(tmp_path: Path) -> None:
    """The nearest catalogue at or above a test is the one that counts."""
    (tmp_path / "requirements.toml").write_text(ENTRY)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert catalogue.find(below) == tmp_path / "requirements.toml"
    assert catalogue.find(tmp_path.parent) is None


def test_every_requirement_has_a_document_and_a_section(project: Path) -> None:
    """A source names a document and where in it, or a commit with its release."""
    for requirement in catalogue.load(project / "suites/requirements.toml").values():
        assert any(mark in requirement.source for mark in ("section", ",", "commit")), requirement.id


def test_suites_and_catalogue_agree(project: Path) -> None:
    """Every conformance test names a requirement, and every requirement has a test (`--strict`)."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "suites",
        "--strict",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("test", "version", "affected"),
    [
        ("test_a[platform-without-es]", (7, 2, 22), True),
        ("test_a[platform-without-es]", (9, 0, 4), True),
        ("test_a[platform-without-es]", (9, 1), False),
        ("test_a[platform-without-es]", (5, 2), False),
        ("test_a[kvm-without-es]", (7, 2, 22), False),
    ],
)
def test_a_known_defect_covers_its_versions_and_tests(
    test: str, version: tuple[int, ...], affected: bool
) -> None:
    """A known defect is expected in the versions that have it, and in no other."""
    known = KnownDefect("INIT-5", "qemu", (6, 0), "w", "r", (9, 1), "platform-without-es")
    assert known.affects("INIT-5", test, "qemu", version) is affected
    assert not known.affects("INIT-1", test, "qemu", version)
    assert not known.affects("INIT-5", test, "other", version)


def test_a_known_defect_of_the_kernel(project: Path) -> None:
    """Its versions are those of the kernel, as a distribution numbers it."""
    defects = catalogue.load_known_defects(project / "suites" / catalogue.KNOWN_DEFECTS)
    (known,) = [defect for defect in defects if defect.vmm == catalogue.KERNEL]
    assert known.affects("SMM-6", "test_smi_is_refused[es_init]", "kvm", (6, 1, 0))
    assert not known.affects("SMM-6", "test_smi_is_refused[es_init]", "kvm", (6, 18, 12))
