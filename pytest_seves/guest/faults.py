# SPDX-License-Identifier: GPL-2.0-or-later
"""Circumstances that a test puts a VMM in, made at the ioctl boundary, on a real host as on the model.

The recorder answers one call of the VMM in place of the kernel (:mod:`pytest_seves.agent.sabotage`), with
the very answer that a kernel gives in that circumstance (Linux KVM and ccp, sources beside each).
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EBUSY, EIO, ENOTTY
from typing import Any

from pytest_seves.errors import UsageError
from pytest_seves.spec import sev
from pytest_seves.spec.kvm import KVM_MEMORY_ENCRYPT_OP
from pytest_seves.spec.sev import FirmwareStatus, SevCmd, SevIssue

Rule = Mapping[str, Any]


def on_sev(name: str, command: SevCmd, action: str, **parameters: Any) -> Rule:
    """A rule for a KVM_MEMORY_ENCRYPT_OP sub-command."""
    return {
        "name": name,
        "request": KVM_MEMORY_ENCRYPT_OP,
        "sev": int(command),
        "action": action,
        **parameters,
    }


def _init_fails(name: str, errno: int) -> tuple[Rule, ...]:
    return tuple(
        on_sev(f"{name}-{command.name}", command, "fail", errno=errno)
        for command in (SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT2)
    )


_STATUS = sev.SEV_USER_DATA_STATUS

FAULTS: Mapping[str, tuple[Rule, ...]] = {
    # ccp could not allocate the trusted memory region at INIT: PLATFORM_STATUS.flags has no ES bit.
    "platform-without-es": (
        {
            "name": "platform-without-es",
            "request": sev.SEV_ISSUE_CMD,
            "issue": int(SevIssue.SEV_PLATFORM_STATUS),
            "action": "rewrite-result",
            "where": "issue-data",
            "offset": _STATUS.field("flags").offset,
            "size": _STATUS.field("flags").size,
            "value": 0,
            "mask": sev.SEV_STATUS_FLAGS_CONFIG_ES,
        },
    ),
    # kvm_amd.sev_es=N: sev_guest_init() answers ENOTTY for an ES guest.
    "kvm-without-es": _init_fails("kvm-without-es", ENOTTY),
    # Every ES ASID is taken: sev_asid_new() answers EBUSY.
    "no-es-asid": _init_fails("no-es-asid", EBUSY),
    # Firmware refuses a VMSA: any firmware error is EIO with the status in kvm_sev_cmd.error.
    "vmsa-update-refused": (
        on_sev(
            "vmsa-update-refused",
            SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA,
            "fail",
            errno=EIO,
            fw_error=int(FirmwareStatus.INVALID_CONFIG),
        ),
    ),
}


def fault_rules(names: tuple[str, ...]) -> tuple[Rule, ...]:
    """Recorder rules of the named faults, in order.

    :raise UsageError: there is no such fault.
    """
    for name in names:
        if name not in FAULTS:
            raise UsageError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    return tuple(rule for name in names for rule in FAULTS[name])
