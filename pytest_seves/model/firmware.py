# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEV firmware as a state machine: guests, their legal order of commands, digests and measurements.

Source: SEV API (AMD 55766) revision 3.24, commands of platform and guest; status codes as in its table 5.
Memory is the caller's: data goes in as plaintext, and comes out as the ciphertext to put in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..spec.certificate import CERTIFICATE, CHAIN_SIZE
from ..spec.sev import (
    MEASUREMENT_SIZE,
    SEV_STATUS_FLAGS_CONFIG_ES,
    SEV_USER_DATA_STATUS,
    FirmwareStatus,
    GuestState,
    PlatformState,
    Policy,
)
from ..spec.vmsa import VMSA_PAGE_SIZE
from . import encryption, owner_session
from .certificates import PlatformKeys
from .firmware_config import FirmwareConfig
from .firmware_error import FirmwareError

if TYPE_CHECKING:
    from hashlib import _Hash

CHIP_ID_SIZE = 64


@dataclass
class Guest:
    """A guest context. `digest` is the running launch digest, `measurement` the HMAC given out."""

    handle: int
    policy: int
    tek: bytes
    tik: bytes
    key: bytes
    state: GuestState = GuestState.LUPDATE
    asid: int | None = None
    digest: _Hash = field(default_factory=hashlib.sha256)
    measurement: bytes = b""


def _require(condition: bool, status: FirmwareStatus) -> None:
    if not condition:
        raise FirmwareError(status)


class Firmware:
    """One ASP. Every command raises :class:`FirmwareError` with the status the driver sees.

    :param random: source of keys and nonces, for tests.
    """

    def __init__(self, config: FirmwareConfig, random: Callable[[int], bytes] = os.urandom) -> None:
        self.config = config
        self.guests: dict[int, Guest] = {}
        self._random = random
        self._next_handle = 1
        self._dirty_asids: set[int] = set()
        self._keys: PlatformKeys | None = None
        self._chip_id = random(CHIP_ID_SIZE)
        self._reset = False

    # Platform commands

    def platform_status(self) -> bytes:
        """SEV_USER_DATA_STATUS, 12 bytes."""
        idle = PlatformState.UNINIT if self._reset else PlatformState.INIT
        return SEV_USER_DATA_STATUS.encode(
            api_major=self.config.api_major,
            api_minor=self.config.api_minor,
            build=self.config.build,
            state=PlatformState.WORKING if self.guests else idle,
            flags=SEV_STATUS_FLAGS_CONFIG_ES if self.config.es else 0,
            guest_count=len(self.guests),
        )

    def factory_reset(self) -> None:
        """SHUTDOWN, as the driver does first, and FACTORY_RESET: new keys, UNINIT until the next guest."""
        _require(not self.guests, FirmwareStatus.INVALID_PLATFORM_STATE)
        self._keys, self._reset = None, True

    def pdh_cert_export(self, pdh_length: int, chain_length: int) -> tuple[bytes, bytes]:
        """The platform's Diffie-Hellman certificate and the chain above it."""
        if pdh_length < CERTIFICATE.size or chain_length < CHAIN_SIZE:
            raise FirmwareError(FirmwareStatus.INVALID_LEN)
        return self.keys.pdh_certificate, self.keys.chain

    def get_id(self, length: int) -> bytes:
        """The chip's identity."""
        if length < CHIP_ID_SIZE:
            raise FirmwareError(FirmwareStatus.INVALID_LEN, CHIP_ID_SIZE)
        return self._chip_id

    def df_flush(self) -> None:
        """Make the ASIDs of deactivated guests usable again."""
        self._dirty_asids.clear()

    @property
    def keys(self) -> PlatformKeys:
        """The platform's keys, generated at their first use."""
        if self._keys is None:
            self._keys = PlatformKeys((self.config.api_major, self.config.api_minor))
        return self._keys

    # Guest commands

    def launch_start(self, policy: int, owner_certificate: bytes = b"", session: bytes = b"") -> int:
        """Create a guest context in LUPDATE and return its handle."""
        least = (policy >> 16 & 0xFF, policy >> 24 & 0xFF)
        _require(least <= (self.config.api_major, self.config.api_minor), FirmwareStatus.POLICY_FAILURE)
        if owner_certificate or session:
            tek, tik = owner_session.unwrap(self.keys.pdh, owner_certificate, session, policy)
        else:
            tek, tik = self._random(owner_session.KEY_SIZE), self._random(owner_session.KEY_SIZE)
        self._reset = False  # KVM_SEV_ES_INIT has the driver initialise it (sev_platform_init())
        handle = self._next_handle
        self._next_handle += 1
        key = encryption.NO_KEY if self.config.in_clear else self._random(encryption.KEY_SIZE)
        self.guests[handle] = Guest(handle, policy, tek, tik, key)
        return handle

    def activate(self, handle: int, asid: int) -> None:
        """Bind the guest to an ASID of the range that its policy calls for."""
        guest = self._guest(handle)
        _require(guest.asid is None, FirmwareStatus.ACTIVE)
        if guest.policy & Policy.ES:
            _require(self.config.es, FirmwareStatus.INVALID_CONFIG)
            _require(1 <= asid <= self.config.es_asids, FirmwareStatus.INVALID_ASID)
        else:
            _require(self.config.es_asids < asid <= self.config.asids, FirmwareStatus.INVALID_ASID)
        _require(all(other.asid != asid for other in self.guests.values()), FirmwareStatus.ASID_OWNED)
        _require(asid not in self._dirty_asids, FirmwareStatus.DFFLUSH_REQUIRED)
        guest.asid = asid

    def memory_key(self, asid: int) -> bytes:
        """The key that the memory controller uses for an ASID; one that nobody knows if it is not bound."""
        keys = [guest.key for guest in self.guests.values() if guest.asid == asid]
        return keys[0] if keys else self._random(encryption.KEY_SIZE)

    def launch_update_data(self, handle: int, address: int, data: bytes) -> bytes:
        """Measure and encrypt guest memory; returns the ciphertext."""
        guest = self._guest(handle, GuestState.LUPDATE)
        _require(guest.asid is not None, FirmwareStatus.INACTIVE)
        _require(len(data) > 0 and len(data) % encryption.BLOCK_SIZE == 0, FirmwareStatus.INVALID_LEN)
        _require(address % encryption.BLOCK_SIZE == 0, FirmwareStatus.INVALID_ADDRESS)
        guest.digest.update(data)
        return encryption.encrypt(guest.key, address, data)

    def launch_update_vmsa(self, handle: int, address: int, page: bytes) -> bytes:
        """Measure and encrypt one vCPU's save area; returns the ciphertext."""
        guest = self._guest(handle, GuestState.LUPDATE)
        _require(bool(guest.policy & Policy.ES) and self.config.es, FirmwareStatus.INVALID_CONFIG)
        _require(guest.asid is not None, FirmwareStatus.INACTIVE)
        _require(len(page) == VMSA_PAGE_SIZE, FirmwareStatus.INVALID_LEN)
        _require(address % VMSA_PAGE_SIZE == 0, FirmwareStatus.INVALID_ADDRESS)
        guest.digest.update(page)
        return encryption.encrypt(guest.key, address, page)

    def launch_measure(self, handle: int, length: int) -> bytes:
        """HMAC over the launch digest and MNONCE, 48 bytes; no UPDATE is legal from then on."""
        guest = self._guest(handle, GuestState.LUPDATE)
        if length < MEASUREMENT_SIZE:
            raise FirmwareError(FirmwareStatus.INVALID_LEN, MEASUREMENT_SIZE)
        nonce = self._random(16)
        version = (self.config.api_major, self.config.api_minor, self.config.build)
        message = struct.pack("<4BI", 4, *version, guest.policy) + guest.digest.digest() + nonce
        guest.measurement = hmac.digest(guest.tik, message, "sha256")
        guest.state = GuestState.LSECRET
        return guest.measurement + nonce

    def launch_secret(self, handle: int, address: int, length: int, header: bytes, packet: bytes) -> bytes:
        """Decrypt the guest owner's packet; returns the ciphertext to place at `address`."""
        guest = self._guest(handle, GuestState.LSECRET)
        _require(address % encryption.BLOCK_SIZE == 0, FirmwareStatus.INVALID_ADDRESS)
        secret = owner_session.open_secret(header, packet, length, guest.tek, guest.tik, guest.measurement)
        return encryption.encrypt(guest.key, address, secret)

    def launch_finish(self, handle: int) -> None:
        """The guest may run."""
        guest = self._guest(handle, GuestState.LSECRET)
        guest.state = GuestState.RUNNING

    def guest_status(self, handle: int) -> Mapping[str, int]:
        """Policy, ASID and state."""
        guest = self._guest(handle)
        return {"policy": guest.policy, "asid": guest.asid or 0, "state": int(guest.state)}

    def deactivate(self, handle: int) -> None:
        """Take the ASID away; it needs a DF_FLUSH before it serves again."""
        guest = self._guest(handle)
        if guest.asid is None:
            raise FirmwareError(FirmwareStatus.INACTIVE)
        self._dirty_asids.add(guest.asid)
        guest.asid = None

    def decommission(self, handle: int) -> None:
        """Forget the guest and its keys."""
        guest = self._guest(handle)
        _require(guest.asid is None, FirmwareStatus.ACTIVE)
        del self.guests[handle]

    def _guest(self, handle: int, state: GuestState | None = None) -> Guest:
        guest = self.guests.get(handle)
        if guest is None:
            raise FirmwareError(FirmwareStatus.INVALID_GUEST)
        lax = self.config.any_order and guest.state is not GuestState.RUNNING
        _require(lax or state is None or guest.state is state, FirmwareStatus.INVALID_GUEST_STATE)
        return guest
