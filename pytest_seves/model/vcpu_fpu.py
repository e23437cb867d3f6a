# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's FPU: KVM_GET/SET_FPU and KVM_GET/SET_XSAVE, and what KVM_SEV_INIT2 puts into the save area.

Sources: x86.c kvm_vcpu_ioctl_x86_{get,set}_xsave(), kvm_arch_vcpu_ioctl_{get,set}_fpu(), fpu/xstate.c
copy_uabi_to_xstate(); svm/sev.c sev_es_sync_vmsa() of Linux 6.10 on. An ES vCPU's FPU is out of reach
(fpstate_is_confidential()), but that is no error for the default VM type.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from . import vcpu_reset

if TYPE_CHECKING:
    from .kvm_vcpu import Vcpu
    from .supervisor import Call

_FP, _SSE, _YMM = 1, 2, 4
_X87 = slice(0, 24)
_MXCSR = slice(24, 32)
_ST = slice(32, 160)
_XMM = slice(160, 416)
_HEADER = 512
_YMM_HIGH = slice(576, 832)
_COMPONENTS = ((_X87, _FP), (_ST, _FP), (_MXCSR, _FP | _SSE | _YMM), (_XMM, _SSE), (_YMM_HIGH, _YMM))
_ST_COUNT, _ST_SIZE = 8, 16


class FpuState:
    """The state as KVM_GET_* gives it back, and `_area`: the XSAVE area that the kernel holds."""

    def __init__(self) -> None:
        self.xsave = vcpu_reset.XSAVE
        self.fpu = vcpu_reset.FPU
        self._area = bytearray(vcpu_reset.XSAVE[: _YMM_HIGH.stop])

    def set_xsave(self, raw: bytes) -> None:
        """Only components that the header names are taken over; the header's bits always are."""
        self.xsave = raw
        (components,) = struct.unpack_from("<Q", raw, _HEADER)
        for part, wanted in _COMPONENTS:
            if components & wanted:
                self._area[part] = raw[part]
        struct.pack_into("<Q", self._area, _HEADER, components)

    def set_fpu(self, raw: bytes) -> None:
        """kvm_fpu has another order; MXCSR is not taken over."""
        self.fpu = raw
        fcw, fsw, ftw, fop, rip, rdp = struct.unpack_from("<HHBxHQQ", raw, 128)
        struct.pack_into("<HHHHQQ", self._area, 0, fcw, fsw, ftw, fop, rip, rdp)
        self._area[_ST] = raw[:128]
        self._area[_XMM] = raw[152:408]

    def vmsa_fields(self) -> dict[str, Any]:
        """The save area's fields; x87_ds and x87_cs are 0."""
        area = bytes(self._area)
        fcw, fsw, ftw, fop, rip, rdp, mxcsr = struct.unpack_from("<HHHHQQI", area)
        registers = [area[_ST][start:] for start in range(0, _ST_COUNT * _ST_SIZE, _ST_SIZE)]
        has_ymm = area[_HEADER] & _YMM
        return {
            "x87_dp": rdp,
            "mxcsr": mxcsr,
            "x87_ftw": ftw,
            "x87_fsw": fsw,
            "x87_fcw": fcw,
            "x87_fop": fop,
            "x87_rip": rip,
            "fpreg_x87": b"".join([r[:8] for r in registers] + [r[8:10] for r in registers]),
            "fpreg_xmm": area[_XMM],
            "fpreg_ymm": area[_YMM_HIGH] if has_ymm else bytes(256),
        }


def _hidden(vcpu: Vcpu) -> bool:
    return vcpu.vm.es and (vcpu.protected or vcpu.profile.fpu_protected_at_creation)


def _unreadable(vcpu: Vcpu) -> bool:
    return _hidden(vcpu) and not vcpu.profile.wrong_fpu_shown


def get_fpu(vcpu: Vcpu, call: Call) -> int:
    """KVM_GET_FPU."""
    vcpu.memory.write(call.argument, bytes(call.size) if _unreadable(vcpu) else vcpu.fpu.fpu)
    return 0


def set_fpu(vcpu: Vcpu, call: Call) -> int:
    """KVM_SET_FPU."""
    raw = vcpu.memory.read(call.argument, call.size)
    if not _hidden(vcpu):
        vcpu.fpu.set_fpu(raw)
    return 0


def get_xsave(vcpu: Vcpu, call: Call) -> int:
    """KVM_GET_XSAVE and KVM_GET_XSAVE2."""
    vcpu.memory.write(call.argument, bytes(call.size) if _unreadable(vcpu) else vcpu.fpu.xsave)
    return 0


def set_xsave(vcpu: Vcpu, call: Call) -> int:
    """KVM_SET_XSAVE."""
    raw = vcpu.memory.read(call.argument, call.size)
    if not _hidden(vcpu):
        vcpu.fpu.set_xsave(raw)
    return 0
