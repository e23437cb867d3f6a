# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests hold of a host now: ASIDs by the misc cgroup, and guests by the firmware's own count."""

from __future__ import annotations

import time
from typing import Any

from pytest_seves.agent import facts
from pytest_seves.spec import sev

_AGAIN_S = 0.02  # neither the cgroup nor the firmware tells of a change


def usage(args: dict[str, Any]) -> dict[str, Any]:
    """Read it; with `wanted`, again until it reads so or `settle_s` is over.

    A VM's last reference goes some time after its process has ended (kvm_put_kvm()).

    Returns ``{"sev", "sev_es", "guests"}``, each None where the host does not tell.
    """
    wanted, deadline = args.get("wanted"), time.monotonic() + float(args.get("settle_s", 0))
    while True:
        found = _read()
        if wanted in (None, found) or time.monotonic() >= deadline:
            return found
        time.sleep(_AGAIN_S)


def _read() -> dict[str, Any]:
    current = facts.misc()["current"] or {}
    return {"sev": current.get("sev"), "sev_es": current.get("sev_es"), "guests": _guests()}


def _guests() -> int | None:
    try:
        answer = facts.platform_status()
    except OSError:
        return None
    if "hex" not in answer:
        return None
    return int(sev.SEV_USER_DATA_STATUS.decode(bytes.fromhex(answer["hex"]))["guest_count"])
