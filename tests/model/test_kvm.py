# SPDX-License-Identifier: GPL-2.0-or-later
"""Errnos and firmware errors of KVM's SEV requests, as Linux 6.1 gives them (no VMM in between)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.model.host import ModelHost
from tests.model.driving import ssh_argv

OK = [0, 0]


@pytest.fixture(scope="module")
def results(host: ModelHost) -> dict[str, Any]:
    """What kvm_calls.py found, run once on the host."""
    program = Path(__file__).with_name("kvm_calls.py").read_text(encoding="utf-8")
    run = subprocess.run(
        ssh_argv(host, "python3 -I -S -"), input=program, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("start before init", "ENOTTY"),
        ("region before init", "ENOTTY"),
        ("init2", "EINVAL"),
        ("vm type 3", "EINVAL"),
        ("unknown sub-command", "EINVAL"),
        ("es_init again", "EBUSY"),
        ("start without /dev/sev", "EBADF"),
        ("es_init with a vcpu", "EINVAL"),
        ("vcpu twice", "EEXIST"),
        ("vmsa of a plain vm", "ENOTTY"),
        ("vmsa after plain init", "ENOTTY"),
        ("es policy after plain init", ["EIO", 0x0D]),
        ("short data", ["EIO", 0x04]),
        ("unmapped data", "ENOMEM"),
        ("debug after", "EINVAL"),
        ("finish before measure", ["EIO", 0x02]),
        ("measure query", [["EIO", 0x04], 48]),
        ("measure short", [["EIO", 0x04], 16]),
        ("vmsa after measure", ["EIO", 0x02]),
        ("policy of a newer api", ["EIO", 0x07]),
        ("late vcpu", [0, 9]),
        ("irqfd without irqchip", "EINVAL"),
        ("ioeventfd again", "EEXIST"),
        ("ioeventfd of nothing", "EBADF"),
        ("ioeventfd of no eventfd", "EINVAL"),
        ("ioeventfd back", "ENOENT"),
        ("irqfd again", "EBUSY"),
        ("irqfd of nothing", "EBADF"),
        ("irqfd of no eventfd", "EINVAL"),
        ("irqfd with a bad resampler", "EBADF"),
    ],
)
def test_request_is_refused(results: dict[str, Any], name: str, wanted: object) -> None:
    """The errno, and where the firmware was asked its status."""
    assert results[name] == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("probe", 0),
        ("smm", [1, 1]),
        ("smm of an es vm", 0),
        ("es_init", OK),
        ("in use", "sev 0\nsev_es 1\n"),
        ("init", OK),
        ("update data", OK),
        ("ciphertext", True),
        ("debug before", 0),
        ("vmsa", OK),
        ("vmsa again", OK),
        ("measure", [OK, 48]),
        ("smi", 0),
        ("finish", OK),
        ("status", [OK, [5, 3]]),
        ("eventfd capabilities", [1] * 5),
        ("ioeventfd", 0),
        ("irqfd", 0),
        ("before the interrupt", [0, 2, 0x81]),
        ("after the interrupt", [0, 2, 0x80]),  # the handler's port 0x82 was no exit
        ("told", 1),
    ],
)
def test_request_succeeds(results: dict[str, Any], name: str, wanted: object) -> None:
    """The result that Linux 6.1 gives."""
    assert results[name] == wanted
