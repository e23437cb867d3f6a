# SPDX-License-Identifier: GPL-2.0-or-later
"""The committed image of the probe guest is what its sources give, and firmware as a VMM wants it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_seves.errors import RigError
from pytest_seves.guest.firmware import es_capable, parse
from pytest_seves.guest.payload import build
from pytest_seves.guest.payload.image import COMMAND_GUID

needs_nasm = pytest.mark.skipif(shutil.which("nasm") is None, reason="no nasm on PATH")


@needs_nasm
def test_sources_that_nasm_refuses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows what NASM said; a warning is an error."""
    (tmp_path / "probe.asm").write_text("mov al, 0x1234\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path)
    with pytest.raises(RigError, match=r"exit status 1: probe.asm:1: "):
        build.build()


def test_the_image_is_firmware_for_sev_es() -> None:
    """Our own reader of firmware tables accepts it without a doubt; APs start in the image itself."""
    table = parse(build.BINARY.read_bytes())
    verdict = es_capable(table)
    assert (verdict.capable, verdict.sure) == (True, True)
    assert table.reset_address is not None
    assert table.reset_address >= 0x1_0000_0000 - table.size
    assert COMMAND_GUID in [entry.guid for entry in table.entries]


def test_the_image_is_small() -> None:
    """The smallest that QEMU takes for -bios, most of it HLT."""
    image = build.BINARY.read_bytes()
    assert len(image) == 0x10000
    assert len(image) - image.count(0xF4) < 0x2800
