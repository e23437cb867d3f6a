# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of guests that boot to their firmware's shell have been seen to fail: one short boot each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.defects.test_defects import FIRMWARE, verdicts

SUITES = ["suites/ap_boot/test_firmware.py", "suites/lifecycle/test_firmware.py"]
#: One vCPU, on the machine where Debian 12's firmware has no defect of its own.
ONE = "pc and not 2vcpu and not 4vcpu and not test_a_reset"


@pytest.mark.parametrize(
    ("name", "guests", "wanted"),
    [
        # It ends when its firmware looks for a TPM, long before there is a shell to shut down at.
        ("vmm-mmio-refused", "not plain", {"AP-BOOT-10": "failed", "LIFECYCLE-9": "undecided"}),
        ("reset-hangs", "plain", {"AP-BOOT-10": "passed", "LIFECYCLE-9": "failed"}),
    ],
)
def test_a_defect_turns_its_requirement_red(
    project: Path, tmp_path: Path, name: str, guests: str, wanted: dict[str, str]
) -> None:
    """It fails what it says it breaks, and nothing else."""
    options = ("--sev-slow", "-k", f"{ONE} and {guests}")
    assert verdicts(project, tmp_path, "--sev-defect", name, *options, suites=SUITES) == wanted
    assert set(wanted) == FIRMWARE
