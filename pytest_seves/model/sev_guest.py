# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_MEMORY_ENCRYPT_OP: Linux 6.1 to 7.2 arch/x86/kvm/svm/sev.c, sub-command by sub-command."""

from __future__ import annotations

import errno
import resource
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..spec import kvm, sev
from ..spec.sev import FirmwareStatus, SevCmd
from ..spec.vmsa import VMSA_PAGE_SIZE
from .memory import Refusal
from .sev_device import SevDevice
from .vmsa_sync import compose

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu
    from .kvm_vm import Vm

_BLOB_MAX = 16 * 1024  # SEV_FW_BLOB_MAX_SIZE
_ERROR_OFFSET = 16
_DR7_DEFAULT = 0x400
_GHCB_VERSION_MIN = 1
_GHCB_VERSION_DEFAULT = 2
_PAGE = 4096
#: Where a vCPU's save area lies in the host's memory; only distinctness matters.
_VMSA_BASE = 0x1_0000_0000


class SevGuest:
    """struct kvm_sev_info of one VM.

    :ivar active: an init sub-command has succeeded; `es`: for an ES guest.
    :ivar vmsa_features: SEV_FEATURES of every vCPU; `ghcb_version`: the highest offered, 0 without ES.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._supervisor = vm.supervisor
        self.active = False
        self.es = False
        self.asid = 0
        self.vmsa_features = 0
        self.ghcb_version = 0
        self.handle: int | None = None
        self._finished = False
        self._device = -1
        self._regions: list[tuple[int, int]] = []
        self._error = 0

    def command(self, address: int) -> int:
        """One sub-command; writes kvm_sev_cmd back, `error` included."""
        memory = self._supervisor.memory
        fields = sev.KVM_SEV_CMD.decode(memory.read(address, sev.KVM_SEV_CMD.size))
        self._error = fields["error"]
        run = self._COMMANDS.get(fields["id"])
        if run is None:
            return -errno.EINVAL
        try:
            result = run(self, fields)
        except Refusal as refusal:
            result = -refusal.errno
        memory.write(address + _ERROR_OFFSET, struct.pack("<I", self._error))
        return result

    def release(self) -> None:
        """sev_vm_destroy(): unbind, forget, and free the ASID."""
        if not self.active:
            return
        profile = self._supervisor.profile
        orphaned = self._device not in self._supervisor.devices
        if self.handle is not None and (
            profile.wrong_guest_leaked or (profile.wrong_asid_leaked and orphaned)
        ):
            return
        if self.handle is not None:
            self._supervisor.platform.request("DEACTIVATE", handle=self.handle)
            self._supervisor.platform.request("DECOMMISSION", handle=self.handle)
        self._supervisor.platform.request("asid_release", asid=self.asid)
        self.active = False

    def memory_key(self) -> bytes:
        """The key that the memory controller has for the guest's ASID."""
        _, key = self._supervisor.platform.request("memory_key", asid=self.asid)
        return key

    def register_region(self, address: int) -> int:
        """Pin guest memory."""
        start, size = struct.unpack("<QQ", self._supervisor.memory.read(address, 16))
        self._pin(start, size)
        self._regions.append((start, size))
        return 0

    def unregister_region(self, address: int) -> int:
        """Unpin exactly a region registered before."""
        region = struct.unpack("<QQ", self._supervisor.memory.read(address, 16))
        if region not in self._regions:
            return -errno.EINVAL
        self._regions.remove(region)
        return 0

    # Sub-commands

    def _init(self, fields: Mapping[str, Any]) -> int:
        profile = self._supervisor.profile
        es = fields["id"] == SevCmd.KVM_SEV_ES_INIT
        if es and not profile.es_usable:
            return -errno.ENOTTY
        if self._vm.vm_type != kvm.KVM_X86_DEFAULT_VM and not profile.wrong_init_any_type:
            return -errno.EINVAL
        return self._activate(es, features=0, ghcb_version=_GHCB_VERSION_MIN if es else 0)

    def _init2(self, fields: Mapping[str, Any]) -> int:
        profile, es = self._supervisor.profile, self._vm.vm_type == kvm.KVM_X86_SEV_ES_VM
        lax = profile.wrong_init_twice if self.active else profile.wrong_init_any_type
        if not self._vm.need_init and not lax:
            return -errno.EINVAL
        layout = sev.KVM_SEV_INIT2_DATA
        init = layout.decode(self._supervisor.memory.read(fields["data"], layout.size))
        features, version = init["vmsa_features"], init["ghcb_version"]
        if not profile.wrong_init2_unchecked:
            if init["flags"] or features & ~(profile.vmsa_features if es else 0):
                return -errno.EINVAL
            if version > (profile.ghcb_version_max if es else 0):
                return -errno.EINVAL
        return self._activate(es, features, version or (_GHCB_VERSION_DEFAULT if es else 0))

    def _activate(self, es: bool, features: int, ghcb_version: int) -> int:
        """__sev_guest_init()."""
        profile = self._supervisor.profile
        if self._vm.vcpus and not profile.wrong_init_after_vcpu:
            return -errno.EINVAL
        if self.active:
            return 0 if profile.wrong_init_twice else -int(getattr(errno, profile.reinit_errno))
        if not (profile.es_asids if es else profile.sev_asids):
            return -int(getattr(errno, profile.no_asid_range_errno))
        answer, _ = self._supervisor.platform.request("asid_allocate", es=es)
        if answer["asid"] is None:
            return -errno.EBUSY
        self.active, self.es, self.asid = True, es, answer["asid"]
        self.vmsa_features, self.ghcb_version = features, ghcb_version
        return 0

    def _launch_start(self, fields: Mapping[str, Any]) -> int:
        memory = self._supervisor.memory
        layout = sev.KVM_SEV_LAUNCH_START_DATA
        start = layout.decode(memory.read(fields["data"], layout.size))
        certificate = self._blob(start["dh_uaddr"], start["dh_len"])
        session = self._blob(start["session_uaddr"], start["session_len"])
        self._require_device(fields["sev_fd"])
        answer, _ = self._issue(
            "LAUNCH_START", certificate + session, policy=start["policy"], certificate=len(certificate)
        )
        handle = answer["handle"]
        try:
            self._issue("ACTIVATE", handle=handle, asid=self.asid)
        except Refusal:
            error = self._error
            self._supervisor.platform.request("DECOMMISSION", handle=handle)
            self._error = error
            raise
        memory.write(fields["data"], struct.pack("<I", handle))
        self.handle, self._device = handle, fields["sev_fd"]
        return 0

    def _launch_update_data(self, fields: Mapping[str, Any]) -> int:
        address, size = self._buffer(sev.KVM_SEV_LAUNCH_UPDATE_DATA_DATA, fields["data"])
        self._pin(address, size)
        self._issue_guest("LAUNCH_UPDATE_DATA", address=address, length=size)
        return 0

    def _launch_update_vmsa(self, _: Mapping[str, Any]) -> int:
        profile = self._supervisor.profile
        if not self.es and not profile.wrong_vmsa_without_es:
            return -errno.ENOTTY
        if self._finished and profile.wrong_late_vmsa:
            return 0
        before = [vcpu for vcpu in self._vm.vcpus.values() if vcpu.protected]
        result = self._measure_vcpus()
        for vcpu in before if profile.wrong_vmsa_twice else ():
            vcpu.vmsa = None
        return result

    def _measure_vcpus(self) -> int:
        pages, measured, refused = [], [], 0
        for vcpu in self._vm.vcpus.values():
            refused = self._refuses_sync(vcpu)
            if refused:
                break
            measured.append(vcpu)
            pages.append(compose(vcpu, self.vmsa_features))
        done = self._encrypt_vmsas(measured, pages)
        if done < len(measured):
            raise Refusal(errno.EIO)
        return -refused

    def _refuses_sync(self, vcpu: Vcpu) -> int:
        if vcpu.guest_debug or vcpu.dr7 != _DR7_DEFAULT:
            return errno.EINVAL
        if vcpu.protected and not self._supervisor.profile.vmsa_twice:
            return errno.EINVAL
        return 0

    def _encrypt_vmsas(self, vcpus: list[Vcpu], pages: list[bytes]) -> int:
        """One firmware command for each; how many succeeded."""
        if not vcpus:
            return 0
        self._require_device(self._device)
        addresses = [_VMSA_BASE + _PAGE * vcpu.identifier for vcpu in vcpus]
        answer, encrypted = self._supervisor.platform.request(
            "LAUNCH_UPDATE_VMSA", b"".join(pages), handle=self.handle or 0, addresses=addresses
        )
        done = len(encrypted) // VMSA_PAGE_SIZE
        for number in range(done):
            vcpus[number].vmsa = encrypted[number * VMSA_PAGE_SIZE :][:VMSA_PAGE_SIZE]
            vcpus[number].vmsa_address = addresses[number]
        self._error = answer["status"]
        return done

    def _launch_measure(self, fields: Mapping[str, Any]) -> int:
        layout = sev.KVM_SEV_LAUNCH_MEASURE_DATA
        address, size = self._buffer(layout, fields["data"])
        if size > _BLOB_MAX:
            return -errno.EINVAL
        length_at = fields["data"] + layout.field("len").offset
        try:
            answer, data = self._issue_guest("LAUNCH_MEASURE", length=size)
        except FirmwareRefusal as refusal:
            if (
                size == 0
            ):  # a query: the firmware's INVALID_LEN carries the length, and the ioctl fails all the same
                wanted = refusal.values.get("length", 0)
                wanted += 16 if self._supervisor.profile.wrong_measure_length else 0
                self._supervisor.memory.write(length_at, struct.pack("<I", wanted))
            raise
        self._supervisor.memory.write(address, data)
        self._supervisor.memory.write(length_at, struct.pack("<I", answer["length"]))
        return 0

    def _launch_secret(self, fields: Mapping[str, Any]) -> int:
        memory = self._supervisor.memory
        layout = sev.KVM_SEV_LAUNCH_SECRET_DATA
        secret = layout.decode(memory.read(fields["data"], layout.size))
        self._pin(secret["guest_uaddr"], secret["guest_len"])
        if secret["guest_uaddr"] % _PAGE + secret["guest_len"] > _PAGE:
            return -errno.EINVAL  # must be one contiguous piece; two pages of a process are not
        packet = self._blob(secret["trans_uaddr"], secret["trans_len"])
        header = self._blob(secret["hdr_uaddr"], secret["hdr_len"])
        self._issue_guest(
            "LAUNCH_UPDATE_SECRET",
            header + packet,
            header=len(header),
            address=secret["guest_uaddr"],
            length=secret["guest_len"],
        )
        return 0

    def _launch_finish(self, _: Mapping[str, Any]) -> int:
        self._issue_guest("LAUNCH_FINISH")
        self._finished = True
        return 0

    def _guest_status(self, fields: Mapping[str, Any]) -> int:
        answer, _ = self._issue_guest("GUEST_STATUS")
        status = sev.KVM_SEV_GUEST_STATUS_DATA.encode(
            handle=self.handle or 0, policy=answer["policy"], state=answer["state"]
        )
        self._supervisor.memory.write(fields["data"], status)
        return 0

    def _not_modelled(self, _: Mapping[str, Any]) -> int:
        self._error = int(FirmwareStatus.UNSUPPORTED)
        return -errno.EIO

    # Parts

    def _issue_guest(self, command: str, payload: bytes = b"", **values: int) -> tuple[dict[str, Any], bytes]:
        """A command about this guest, through the descriptor that LAUNCH_START kept; handle 0 before it."""
        self._require_device(self._device)
        return self._issue(command, payload, handle=self.handle or 0, **values)

    def _issue(self, command: str, payload: bytes = b"", **values: int) -> tuple[dict[str, Any], bytes]:
        """sev_issue_cmd(): EIO and the status in kvm_sev_cmd.error for anything but SUCCESS."""
        answer, data = self._supervisor.platform.request(command, payload, **values)
        self._error = answer["status"]
        if answer.get("fault"):
            raise Refusal(errno.ENOMEM)
        if answer["status"]:
            raise FirmwareRefusal(answer)
        return answer, data

    def _require_device(self, descriptor: int) -> None:
        if not isinstance(self._supervisor.devices.get(descriptor), SevDevice):
            raise Refusal(errno.EBADF)

    def _buffer(self, layout: Any, address: int) -> tuple[int, int]:
        fields = layout.decode(self._supervisor.memory.read(address, layout.size))
        return fields["uaddr"], fields["len"]

    def _blob(self, address: int, size: int) -> bytes:
        """psp_copy_user_blob(); none if the address is NULL."""
        if address == 0:
            return b""
        if size == 0 or size > _BLOB_MAX:
            raise Refusal(errno.EINVAL)
        return self._supervisor.memory.read(address, size)

    def _pin(self, address: int, size: int) -> None:
        """sev_pin_memory()."""
        if size == 0 or address + size >= 1 << 64:
            raise Refusal(errno.EINVAL)
        try:
            self._supervisor.memory.read(address, 1)
            self._supervisor.memory.read(address + size - 1, 1)
        except Refusal:
            raise Refusal(errno.ENOMEM) from None
        if self._supervisor.profile.memlock:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            pinned = size + sum(region[1] for region in self._regions)
            if limit != resource.RLIM_INFINITY and pinned > limit:
                raise Refusal(errno.ENOMEM)

    _COMMANDS: ClassVar[Mapping[int, Callable[[SevGuest, Mapping[str, Any]], int]]] = {}


class FirmwareRefusal(Refusal):
    """EIO, with what the firmware said."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(errno.EIO)
        self.values = values


def _only_for_guests(
    run: Callable[[SevGuest, Mapping[str, Any]], int],
) -> Callable[[SevGuest, Mapping[str, Any]], int]:
    """ENOTTY before an init sub-command has made the VM a SEV guest."""

    def checked(guest: SevGuest, fields: Mapping[str, Any]) -> int:
        lax = guest._supervisor.profile.wrong_launch_uninitialised
        return run(guest, fields) if guest.active or lax else -errno.ENOTTY

    return checked


SevGuest._COMMANDS = {
    SevCmd.KVM_SEV_INIT: SevGuest._init,
    SevCmd.KVM_SEV_ES_INIT: SevGuest._init,
    SevCmd.KVM_SEV_INIT2: SevGuest._init2,
    SevCmd.KVM_SEV_LAUNCH_START: _only_for_guests(SevGuest._launch_start),
    SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA: _only_for_guests(SevGuest._launch_update_data),
    SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA: _only_for_guests(SevGuest._launch_update_vmsa),
    SevCmd.KVM_SEV_LAUNCH_SECRET: _only_for_guests(SevGuest._launch_secret),
    SevCmd.KVM_SEV_LAUNCH_MEASURE: _only_for_guests(SevGuest._launch_measure),
    SevCmd.KVM_SEV_LAUNCH_FINISH: _only_for_guests(SevGuest._launch_finish),
    SevCmd.KVM_SEV_GUEST_STATUS: _only_for_guests(SevGuest._guest_status),
    **{
        command: _only_for_guests(SevGuest._not_modelled)
        for command in SevCmd
        if SevCmd.KVM_SEV_SEND_START <= command <= SevCmd.KVM_SEV_RECEIVE_FINISH
        or command
        in (SevCmd.KVM_SEV_DBG_DECRYPT, SevCmd.KVM_SEV_DBG_ENCRYPT, SevCmd.KVM_SEV_GET_ATTESTATION_REPORT)
        or command is SevCmd.KVM_SEV_SEND_CANCEL
    },
}
