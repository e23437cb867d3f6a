# SPDX-License-Identifier: GPL-2.0-or-later
"""GuestSpec: what is refused, and what makes two guests the same."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_seves.errors import UsageError
from pytest_seves.guest.spec import GuestSpec, policy_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpus": 0}, "vcpus: wanted 1 to"),
        ({"vcpus": 5000}, "vcpus: wanted 1 to"),
        ({"policy": -1}, "policy: wanted a 32-bit number"),
        ({"policy": 1 << 32}, "policy: wanted a 32-bit number"),
        ({"init_path": "ES"}, "init_path: wanted one of"),
        ({"firmware_via": "rom"}, "firmware_via"),
        ({"variables": "host"}, "variables: wanted firmware_via='pflash'"),
        (
            {"firmware_via": "pflash", "variables": "v.fd"},
            "variables: wanted one of .'host', 'optional'. or an absolute path",
        ),
        ({"firmware_via": "pflash", "variables": "host", "firmware": "/f"}, "wanted no other firmware"),
        ({"kernel": "vmlinuz"}, "kernel: wanted 'host' or an absolute path"),
        ({"kernel": "/k", "initrd": "x"}, "initrd: wanted 'probe' or an absolute path"),
        ({"initrd": "probe"}, "wanted kernel=... with them"),
        ({"append": "x"}, "wanted kernel=... with them"),
        ({"kernel_hashes": True}, "wanted kernel=... with them"),
        ({"kernel": "/k", "kernel_hashes": True, "policy": None}, "wanted a policy with it"),
        ({"vcpu": 2}, "no such option vcpu; there are"),
    ],
)
def test_a_guest_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    """A wrong option says what was wanted and got."""
    with pytest.raises(UsageError, match=message):
        GuestSpec.of(**options)


def test_equal_options_make_one_guest() -> None:
    """The same guest asked for twice is one key, however its options were written."""
    one = GuestSpec.of(machine={"type": "pc", "smm": "off"}, extra=["-no-reboot"])
    two = GuestSpec.of(machine={"type": "pc", "smm": "off"}, extra=("-no-reboot",))
    assert {one: "same"}[two] == "same"


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (None, "plain"),
        (0, "0"),
        (0x1, "NODBG"),
        (0x5, "ES+NODBG"),
        (0x7, "ES+NODBG+NOKS"),
        (0x37010004, "ES+API1.55"),
    ],
)
def test_policies_have_names(policy: int | None, name: str) -> None:
    """Policies are shown by their bits and least API version."""
    assert policy_name(policy) == name


@pytest.mark.parametrize(("policy", "es"), [(None, False), (0x1, False), (0x4, True), (0x5, True)])
def test_bit_2_is_sev_es(policy: int | None, es: bool) -> None:
    """Policy bit 2 makes a guest SEV-ES."""
    assert GuestSpec(policy=policy).es is es
