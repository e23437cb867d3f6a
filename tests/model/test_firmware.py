# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's state machine: illegal orders and their status codes first, then a launch."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable

import pytest

from pytest_seves.model.firmware import Firmware
from pytest_seves.model.firmware_config import FirmwareConfig
from pytest_seves.model.firmware_error import FirmwareError
from pytest_seves.spec.sev import SEV_USER_DATA_STATUS, FirmwareStatus, GuestState

CONFIG = FirmwareConfig(1, 55, 24, es=True, es_asids=3, asids=10)
ES, SEV = 5, 1
PAGE = bytes(range(256)) * 16


@pytest.fixture
def firmware() -> Firmware:
    """An initialised platform with SEV-ES."""
    return Firmware(CONFIG)


def started(firmware: Firmware, policy: int = ES, asid: int = 1) -> int:
    """A guest in LUPDATE, active."""
    handle = firmware.launch_start(policy)
    firmware.activate(handle, asid)
    return handle


def measured(firmware: Firmware) -> int:
    """A guest in LSECRET."""
    handle = started(firmware)
    firmware.launch_measure(handle, 48)
    return handle


def running(firmware: Firmware) -> int:
    """A guest in RUNNING."""
    handle = measured(firmware)
    firmware.launch_finish(handle)
    return handle


def status_of(run: Callable[[], object]) -> FirmwareStatus:
    """The status that a command fails with."""
    with pytest.raises(FirmwareError) as caught:
        run()
    return caught.value.status


COMMANDS: dict[str, Callable[[Firmware, int], object]] = {
    "update_data": lambda f, h: f.launch_update_data(h, 0x1000, PAGE),
    "update_vmsa": lambda f, h: f.launch_update_vmsa(h, 0x1000, PAGE),
    "measure": lambda f, h: f.launch_measure(h, 48),
    "secret": lambda f, h: f.launch_secret(h, 0, 16, bytes(52), bytes(16)),
    "finish": lambda f, h: f.launch_finish(h),
}
ILLEGAL = [
    (started, "secret"),
    (started, "finish"),
    *((state, name) for state in (measured, running) for name in ("update_data", "update_vmsa", "measure")),
    (running, "secret"),
    (running, "finish"),
]


@pytest.mark.parametrize(("state", "command"), ILLEGAL, ids=lambda value: getattr(value, "__name__", value))
def test_command_in_the_wrong_state_is_refused(
    firmware: Firmware, state: Callable[..., int], command: str
) -> None:
    """Each launch command is legal in one state of the guest only."""
    handle = state(firmware)
    assert status_of(lambda: COMMANDS[command](firmware, handle)) is FirmwareStatus.INVALID_GUEST_STATE


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_handle_is_refused(firmware: Firmware, command: str) -> None:
    """A handle that LAUNCH_START did not give is INVALID_GUEST."""
    assert status_of(lambda: COMMANDS[command](firmware, 7)) is FirmwareStatus.INVALID_GUEST


def test_update_before_activate_is_refused(firmware: Firmware) -> None:
    """Memory cannot be encrypted for a guest with no ASID."""
    handle = firmware.launch_start(ES)
    assert status_of(lambda: firmware.launch_update_data(handle, 0, PAGE)) is FirmwareStatus.INACTIVE


def test_policy_that_wants_a_newer_api_is_refused(firmware: Firmware) -> None:
    """The policy's least API version is honoured."""
    assert status_of(lambda: firmware.launch_start(ES | 1 << 16 | 56 << 24)) is FirmwareStatus.POLICY_FAILURE


def test_policy_that_wants_this_api_is_accepted(firmware: Firmware) -> None:
    """An equal API version is new enough."""
    assert firmware.launch_start(ES | 1 << 16 | 55 << 24) > 0


@pytest.mark.parametrize(("policy", "asid"), [(ES, 0), (ES, 4), (SEV, 3), (SEV, 11)])
def test_asid_outside_the_policys_range_is_refused(firmware: Firmware, policy: int, asid: int) -> None:
    """SEV-ES guests take the low ASIDs, SEV guests the others."""
    handle = firmware.launch_start(policy)
    assert status_of(lambda: firmware.activate(handle, asid)) is FirmwareStatus.INVALID_ASID


def test_es_guest_on_a_platform_without_es_is_refused() -> None:
    """A platform initialised without the ES flag fails an ES guest with INVALID_CONFIG."""
    firmware = Firmware(FirmwareConfig(1, 55, 24, es=False, es_asids=3, asids=10))
    handle = firmware.launch_start(ES)
    assert status_of(lambda: firmware.activate(handle, 1)) is FirmwareStatus.INVALID_CONFIG


def test_vmsa_of_a_plain_sev_guest_is_refused(firmware: Firmware) -> None:
    """LAUNCH_UPDATE_VMSA needs the policy's ES bit."""
    handle = started(firmware, SEV, 4)
    assert status_of(lambda: firmware.launch_update_vmsa(handle, 0, PAGE)) is FirmwareStatus.INVALID_CONFIG


def test_asid_of_another_guest_is_refused(firmware: Firmware) -> None:
    """One ASID serves one guest."""
    started(firmware)
    other = firmware.launch_start(ES)
    assert status_of(lambda: firmware.activate(other, 1)) is FirmwareStatus.ASID_OWNED


def test_second_activate_is_refused(firmware: Firmware) -> None:
    """An active guest is ACTIVE."""
    handle = started(firmware)
    assert status_of(lambda: firmware.activate(handle, 2)) is FirmwareStatus.ACTIVE


def test_asid_needs_a_flush_before_its_next_guest(firmware: Firmware) -> None:
    """DEACTIVATE leaves the ASID dirty until DF_FLUSH."""
    handle = started(firmware)
    firmware.deactivate(handle)
    firmware.decommission(handle)
    other = firmware.launch_start(ES)
    assert status_of(lambda: firmware.activate(other, 1)) is FirmwareStatus.DFFLUSH_REQUIRED
    firmware.df_flush()
    firmware.activate(other, 1)


def test_decommission_of_an_active_guest_is_refused(firmware: Firmware) -> None:
    """DEACTIVATE comes first."""
    handle = started(firmware)
    assert status_of(lambda: firmware.decommission(handle)) is FirmwareStatus.ACTIVE


def test_deactivate_of_an_inactive_guest_is_refused(firmware: Firmware) -> None:
    """Nothing to deactivate."""
    handle = firmware.launch_start(ES)
    assert status_of(lambda: firmware.deactivate(handle)) is FirmwareStatus.INACTIVE


@pytest.mark.parametrize("size", [0, 8, 17])
def test_length_that_is_no_multiple_of_16_is_refused(firmware: Firmware, size: int) -> None:
    """Encryption works on 16-byte blocks."""
    handle = started(firmware)
    assert (
        status_of(lambda: firmware.launch_update_data(handle, 0, bytes(size))) is FirmwareStatus.INVALID_LEN
    )


def test_unaligned_address_is_refused(firmware: Firmware) -> None:
    """So does the address."""
    handle = started(firmware)
    assert status_of(lambda: firmware.launch_update_data(handle, 8, PAGE)) is FirmwareStatus.INVALID_ADDRESS


def test_short_measure_buffer_tells_the_length_and_changes_nothing(firmware: Firmware) -> None:
    """The length query fails, names 48 bytes, and leaves the guest in LUPDATE."""
    handle = started(firmware)
    with pytest.raises(FirmwareError) as caught:
        firmware.launch_measure(handle, 0)
    assert (caught.value.status, caught.value.wanted_length) == (FirmwareStatus.INVALID_LEN, 48)
    assert firmware.guests[handle].state is GuestState.LUPDATE


def test_measurement_is_the_hmac_over_the_launch_digest(firmware: Firmware) -> None:
    """HMAC(TIK, 4, API version, build, policy, digest, nonce), as guest owners compute it."""
    handle = started(firmware)
    firmware.launch_update_data(handle, 0x2000, PAGE)
    firmware.launch_update_vmsa(handle, 0x3000, bytes(4096))
    blob = firmware.launch_measure(handle, 48)
    digest = hashlib.sha256(PAGE + bytes(4096)).digest()
    message = bytes([4, 1, 55, 24]) + struct.pack("<I", ES) + digest + blob[32:]
    assert blob[:32] == hmac.digest(firmware.guests[handle].tik, message, "sha256")


def test_host_sees_ciphertext_that_differs_by_address_and_guest(firmware: Firmware) -> None:
    """Equal pages give different ciphertext elsewhere and in another guest, never plaintext."""
    one, two = started(firmware, asid=1), started(firmware, asid=2)
    seen = {
        firmware.launch_update_data(one, 0x1000, PAGE),
        firmware.launch_update_data(one, 0x2000, PAGE),
        firmware.launch_update_data(two, 0x1000, PAGE),
    }
    assert len(seen) == 3
    assert PAGE not in seen


def test_platform_status_counts_guests(firmware: Firmware) -> None:
    """INIT with no guest, WORKING with one; the ES flag and the version are told."""
    idle = SEV_USER_DATA_STATUS.decode(firmware.platform_status())
    firmware.launch_start(ES)
    busy = SEV_USER_DATA_STATUS.decode(firmware.platform_status())
    assert (idle["state"], idle["guest_count"], busy["state"], busy["guest_count"]) == (1, 0, 2, 1)
    assert (idle["api_major"], idle["api_minor"], idle["build"], idle["flags"]) == (1, 55, 24, 0x100)
