# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/sev: SEV_ISSUE_CMD, as drivers/crypto/ccp/sev-dev.c of Linux 6.1 answers it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ..spec.certificate import CERTIFICATE, CHAIN_SIZE
from ..spec.sev import SEV_ISSUE_CMD, SEV_ISSUE_CMD_DATA, FirmwareStatus, SevIssue

if TYPE_CHECKING:
    from .supervisor import Call, GuestSupervisor

_PDH_EXPORT = struct.Struct("<QIQI")  # sev_user_data_pdh_cert_export, packed
_GET_ID2 = struct.Struct("<QI")
_GET_ID_SIZE = 64
_ERROR_OFFSET = 12


class SevDevice:
    """An open /dev/sev."""

    requests: ClassVar[Mapping[int, Callable[..., int | None]]]
    unknown_errno: ClassVar[int] = errno.EINVAL

    def __init__(self, supervisor: GuestSupervisor, writable: bool) -> None:
        self._supervisor = supervisor
        self._writable = writable

    def closed(self) -> None:
        """The driver keeps nothing per descriptor."""

    def issue(self, call: Call) -> int:
        """SEV_ISSUE_CMD."""
        memory = self._supervisor.memory
        fields = SEV_ISSUE_CMD_DATA.decode(memory.read(call.argument, SEV_ISSUE_CMD_DATA.size))
        run = self._COMMANDS.get(fields["cmd"])
        if run is None:
            if fields["cmd"] > SevIssue.SEV_GET_ID2:  # SNP commands: SEV_MAX of this kernel is below them
                return -errno.EINVAL
            if not self._writable:
                return -errno.EPERM
            status = int(FirmwareStatus.UNSUPPORTED)  # other platform ownership is not modelled
        elif fields["cmd"] == SevIssue.SEV_FACTORY_RESET and not self._writable:
            return -errno.EPERM
        else:
            status = run(self, fields["data"])
        memory.write(call.argument + _ERROR_OFFSET, struct.pack("<I", status))
        return -errno.EIO if status else 0

    def _platform_status(self, address: int) -> int:
        answer, data = self._supervisor.platform.request("PLATFORM_STATUS")
        self._supervisor.memory.write(address, data)
        return int(answer["status"])

    def _factory_reset(self, _: int) -> int:
        return int(self._supervisor.platform.request("FACTORY_RESET")[0]["status"])

    def _pdh_cert_export(self, address: int) -> int:
        memory = self._supervisor.memory
        pdh, pdh_length, chain, chain_length = _PDH_EXPORT.unpack(memory.read(address, _PDH_EXPORT.size))
        answer, data = self._supervisor.platform.request(
            "PDH_CERT_EXPORT", pdh_length=pdh_length, chain_length=chain_length
        )
        memory.write(address, _PDH_EXPORT.pack(pdh, CERTIFICATE.size, chain, CHAIN_SIZE))
        if answer["status"] == 0:
            memory.write(pdh, data[: answer["pdh"]])
            memory.write(chain, data[answer["pdh"] :])
        return int(answer["status"])

    def _get_id2(self, address: int) -> int:
        memory = self._supervisor.memory
        where, length = _GET_ID2.unpack(memory.read(address, _GET_ID2.size))
        answer, data = self._supervisor.platform.request("GET_ID", length=length)
        if answer["status"] == 0:
            memory.write(where, data)
        memory.write(address, _GET_ID2.pack(where, answer.get("length", len(data))))
        return int(answer["status"])

    def _get_id(self, address: int) -> int:
        answer, data = self._supervisor.platform.request("GET_ID", length=_GET_ID_SIZE)
        if answer["status"] == 0:
            self._supervisor.memory.write(address, data.ljust(2 * _GET_ID_SIZE, b"\0"))
        return int(answer["status"])

    _COMMANDS: ClassVar[Mapping[int, Callable[[SevDevice, int], int]]] = {
        SevIssue.SEV_FACTORY_RESET: _factory_reset,
        SevIssue.SEV_PLATFORM_STATUS: _platform_status,
        SevIssue.SEV_PDH_CERT_EXPORT: _pdh_cert_export,
        SevIssue.SEV_GET_ID: _get_id,
        SevIssue.SEV_GET_ID2: _get_id2,
    }


SevDevice.requests = {SEV_ISSUE_CMD: SevDevice.issue}
