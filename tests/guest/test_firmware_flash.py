# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware and its variables as two flash chips, held against the files that the distribution ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import Unsupported
from pytest_seves.guest.firmware_flash import host_flash, variables_in, variables_path
from pytest_seves.host.inventory import Firmware
from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of

if TYPE_CHECKING:
    from pytest_seves.model.host import ModelHost

BOTH = Path("/usr/share/ovmf/OVMF.fd")
CODE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
        ("/codes/my-CODE.fd", "/codes/my-VARS.fd"),
        ("/codes/OVMF.fd", None),
        ("", None),
    ],
)
def test_names(code: str, variables: str | None) -> None:
    """The name of a file of code tells that of its variables, whatever its directory is called."""
    assert variables_path(code) == variables


@given(st.binary(max_size=64))
def test_anything_else_holds_no_variables(head: bytes) -> None:
    """Only a volume of variables is one."""
    assert variables_in(head) == 0


@pytest.mark.skipif(not (BOTH.exists() and CODE.exists()), reason="no OVMF of 2 MiB is installed")
def test_an_image_of_both_is_taken_apart(model: ModelHost) -> None:
    """Byte for byte as the distribution takes it apart; of code alone nothing is copied but the variables."""
    entry = entry_of(model)
    with Target(replace(entry, firmware=Firmware(str(BOTH)))) as host:
        assert host_flash(host) == (CODE.read_bytes(), VARIABLES.read_bytes())
    with Target(replace(entry, firmware=Firmware(str(CODE)))) as host:
        assert host_flash(host) == (None, VARIABLES.read_bytes())


def test_no_variables(model: ModelHost, tmp_path: Path) -> None:
    """The reason to skip says where they were looked for."""
    for name, said in (("code.fd", r"/vars\.fd: ENOENT"), ("firmware.fd", r"none in .*/firmware\.fd")):
        image = tmp_path / name
        image.write_bytes(bytes(0x10000))
        named = replace(entry_of(model), firmware=Firmware(str(image)))
        with Target(named) as host, pytest.raises(Unsupported, match=said):
            host_flash(host)
