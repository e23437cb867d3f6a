# SPDX-License-Identifier: GPL-2.0-or-later
"""VMGEXIT as KVM answers it: the GHCB MSR protocol and the NAE events of the shared page.

Source: Linux arch/x86/kvm/svm/sev.c sev_handle_vmgexit(), sev_handle_vmgexit_msr_protocol(),
sev_es_validate_vmgexit(), setup_vmgexit_scratch(), sev_vcpu_deliver_sipi_vector(); 6.1 to 7.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ...spec import ghcb as spec
from ...spec import kvm
from . import exits, msrs, start, vmcb
from .guest_memory import NotMemory
from .nested_paging import C_BIT, PAGE

if TYPE_CHECKING:
    from .processor import Processor

_STRING, _IN = 1 << 2, 1 << 0
_GENERAL_PROTECTION = 0x80000300 | 13  # event injection: valid, exception
_SCRATCH_LIMIT = 16 * PAGE
_FEATURES = 0b11  # SNP and SNP AP creation, told to everyone
_MIN_VERSION = 1
_RESULT_SHIFT = 12
_NAE, _MSR_PROTOCOL = 1, 2


def _bits(*fields: int) -> int:
    """Their bits in the bitmap of what is valid."""
    return sum(1 << at // 8 for at in fields)


#: What must be marked valid beside exit code and information, by exit code.
_NEEDED: Mapping[int, int] = {
    vmcb.WRITE_DR7: _bits(spec.RAX),
    vmcb.RDPMC: _bits(spec.RCX),
    vmcb.CPUID: _bits(spec.RAX, spec.RCX),
    vmcb.MSR: _bits(spec.RCX),
    vmcb.VMMCALL: _bits(spec.RAX, spec.CPL),
    vmcb.MONITOR: _bits(spec.RAX, spec.RCX, spec.RDX),
    vmcb.MWAIT: _bits(spec.RAX, spec.RCX),
    spec.MMIO_READ: _bits(spec.SW_SCRATCH),
    spec.MMIO_WRITE: _bits(spec.SW_SCRATCH),
    **dict.fromkeys((vmcb.READ_DR7, vmcb.RDTSC, vmcb.INVD, vmcb.IOIO, vmcb.RDTSCP, vmcb.WBINVD), 0),
    **dict.fromkeys((spec.NMI_COMPLETE, spec.AP_RESET_HOLD, spec.AP_JUMP_TABLE), 0),
    **dict.fromkeys((spec.UNSUPPORTED_EVENT, spec.HV_FEATURES, spec.TERMINATE), 0),
}
_RAX, _SCRATCH = _bits(spec.RAX), _bits(spec.SW_SCRATCH)
_VERSION_2 = (spec.HV_FEATURES, spec.TERMINATE, spec.AP_CREATION, spec.PSC, 0x80000011, 0x80000012)
_SNP_ONLY = (spec.AP_CREATION, spec.PSC, 0x80000011, 0x80000012)
#: In the order of kvm_regs.
_EXCHANGED = {"rax": spec.RAX, "rbx": spec.RBX, "rcx": spec.RCX, "rdx": spec.RDX, "rsi": spec.RSI}
_RETURNED = tuple((name, at) for name, at in _EXCHANGED.items() if name != "rsi")
_ALL_BITS = (1 << 64) - 1
_SHOWN = struct.Struct("<5Q96xQ")  # kvm_regs, and RFLAGS at its end
_EXIT = struct.Struct("<4Q")  # SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2, SW_SCRATCH
_EXIT_VALID = _bits(spec.SW_EXITCODE, spec.SW_EXITINFO1, spec.SW_EXITINFO2)
_U64 = struct.Struct("<Q")
_VALID = struct.Struct("<2Q")
_USAGE = struct.Struct("<I")
_ANSWER = range(spec.RAX, spec.VALID_BITMAP + 16)


class _Refused(Exception):
    """Malformed input: SW_EXITINFO2 tells how."""

    def __init__(self, reason: int) -> None:
        super().__init__(reason)
        self.reason = reason


class Ghcb:
    """One vCPU's.

    :ivar msr: the GHCB MSR.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._memory = processor.memory
        sev = processor.vcpu.vm.sev
        self._version = sev.ghcb_version if sev is not None else 0
        self.msr = spec.sev_info(self._version, _MIN_VERSION, C_BIT)
        self._valid = 0
        self._registers: dict[str, int] = dict.fromkeys(_EXCHANGED, 0)
        self._hold = 0
        self._page: int | None = None
        self._answers: dict[int, int] = {}

    def vmgexit(self) -> exits.Handling | None:
        """The guest asks."""
        self._processor.machine.trace.vmgexit(self.msr)
        if self.msr & spec.INFO_MASK:
            return self._msr_protocol(self.msr & spec.INFO_MASK)
        if not self.msr or self._memory.slot(self.msr) is None:
            return None  # "GHCB gpa is not set" or not memory: straight back to the guest
        return self._nae_event()

    # MSR protocol

    def _msr_protocol(self, info: int) -> exits.Handling | None:
        if info == spec.SEV_INFO_REQUEST:
            self.msr = spec.sev_info(self._version, _MIN_VERSION, C_BIT)
        elif info == spec.CPUID_REQUEST:
            leaf = self._processor.cpuid(self.msr >> 32, 0)
            self._show_leaf(leaf)
            self.msr = leaf[self.msr >> 30 & 3] << 32 | self.msr & 0xFFFFF000 | spec.CPUID_RESPONSE
        elif info == spec.AP_RESET_HOLD_REQUEST and self._processor.vcpu.profile.ghcb_2:
            self._hold = _MSR_PROTOCOL
            self.msr = spec.AP_RESET_HOLD_RESPONSE
            return self._reset_hold()
        elif info == spec.HV_FEATURES_REQUEST and self._processor.vcpu.profile.ghcb_2:
            self.msr = _FEATURES << 12 | spec.HV_FEATURES_RESPONSE
        elif info == spec.TERMINATE_REQUEST or (
            info in (spec.PREFERRED_GPA_REQUEST, spec.REGISTER_GPA_REQUEST, spec.PSC_REQUEST)
            and self._processor.vcpu.profile.ghcb_2
        ):
            return self._terminate()
        return None  # an unknown request keeps its value

    def _show_leaf(self, leaf: tuple[int, int, int, int]) -> None:
        """KVM answers by its handler of CPUID, which leaves the result in its own copies of the registers."""
        shown = kvm.REGS.decode(self._processor.vcpu.regs)
        shown.update(zip(("rax", "rbx", "rcx", "rdx"), leaf, strict=True))
        self._processor.vcpu.regs = kvm.REGS.encode(**shown)

    def _terminate(self) -> exits.Handling:
        self._processor.machine.trace.note(
            f"vCPU {self._processor.vcpu.identifier}: guest requested termination, GHCB MSR {self.msr:#x}"
        )
        if self._processor.vcpu.profile.wrong_termination_ignored:
            return
        if not self._processor.vcpu.profile.sev_term_event:
            yield exits.INVALID
            return
        yield exits.Termination(self.msr)

    def _reset_hold(self) -> exits.Handling | None:
        if not self._processor.vcpu.vm.in_kernel_lapic:
            return _exit_to_vmm(exits.RESET_HOLD)
        self._processor.hold()
        return None

    def woken(self) -> None:
        """A SIPI ends the reset hold."""
        if self._hold == _NAE and self._page is not None:
            self._answers = {spec.SW_EXITINFO2: 1}
            self._write_back()
        elif self._hold == _MSR_PROTOCOL:
            self.msr = 1 << _RESULT_SHIFT | spec.AP_RESET_HOLD_RESPONSE
        self._hold = 0

    # The page

    def _nae_event(self) -> exits.Handling | None:
        page = self._page = self.msr & -PAGE
        self._hold = 0
        raw = self._memory.host_read(page, PAGE)
        code, one, two, scratch = _EXIT.unpack_from(raw, spec.SW_EXITCODE)
        low, high = _VALID.unpack_from(raw, spec.VALID_BITMAP)
        self._valid = valid = low | high << 64
        self._registers = {
            name: _U64.unpack_from(raw, at)[0] if valid >> at // 8 & 1 else 0
            for name, at in _EXCHANGED.items()
        }
        self._scratch = scratch if valid & _SCRATCH else 0
        self._show_registers()
        self._answers = {}
        handling: exits.Handling | None = None
        (usage,) = _USAGE.unpack_from(raw, spec.GHCB_USAGE)
        try:
            self._validate(usage, code, one)
            self._answer(0, 0)
            handler = self._events.get(code)
            handling = handler(self, one, two) if handler is not None else None
            reason = next(handling, None) if handling is not None else None
            if handler is None:
                self._skipped(code)
        except _Refused as refusal:
            self._answer(spec.RESPONSE_MALFORMED, refusal.reason)
            reason = None
        except NotMemory:
            return _exit_to_vmm(exits.INVALID)
        if handling is None or reason is None:  # nothing of it was for the VMM
            self._finish(bytes(16))
            return None
        self._write_back(bytes(16))
        return self._finish_after(reason, handling)

    def _show_registers(self) -> None:
        """KVM's own copies are cleared, RIP included, and filled from the page: KVM_GET_REGS shows them."""
        all_shown = self._processor.vcpu.profile.wrong_ghcb_registers
        if all_shown:
            shown = kvm.REGS.encode(**start.general(self._processor.engine), rflags=2)
        else:
            shown = _SHOWN.pack(*self._registers.values(), 2)
        self._processor.vcpu.regs = shown

    def _validate(self, usage: int, code: int, one: int) -> None:
        if usage:
            raise _Refused(spec.ERROR_INVALID_USAGE)
        if self._valid & _EXIT_VALID != _EXIT_VALID:
            raise _Refused(spec.ERROR_MISSING_INPUT)
        needed = _NEEDED.get(code)
        if code in _VERSION_2 and not self._processor.vcpu.profile.ghcb_2:
            raise _Refused(spec.ERROR_INVALID_EVENT)
        if code in _SNP_ONLY:
            raise _Refused(spec.ERROR_MISSING_INPUT)
        if needed is None:
            raise _Refused(spec.ERROR_INVALID_EVENT)
        if code == vmcb.CPUID and self._registers["rax"] == 0xD:
            needed |= _bits(spec.XCR0)
        if code == vmcb.IOIO:
            needed = _SCRATCH if one & _STRING else 0 if one & _IN else _RAX
        if code == vmcb.MSR and one:
            needed |= _bits(spec.RAX, spec.RDX)
        if needed & ~self._valid:
            raise _Refused(spec.ERROR_MISSING_INPUT)

    def _answer(self, one: int, two: int) -> None:
        self._answers[spec.SW_EXITINFO1], self._answers[spec.SW_EXITINFO2] = one, two

    def _write_back(self, valid: bytes | None = None) -> None:
        """Write the answers, and mark them valid beside what is (`valid`: what was marked until now)."""
        start = (self._page or 0) + _ANSWER.start
        area = bytearray(self._memory.host_read(start, _ANSWER.stop - _ANSWER.start))
        bitmap = spec.VALID_BITMAP - _ANSWER.start
        bits = int.from_bytes(area[bitmap : bitmap + 16] if valid is None else valid, "little")
        for at, value in self._answers.items():
            _U64.pack_into(area, at - _ANSWER.start, value & _ALL_BITS)
            bits |= 1 << (at >> 3)
        area[bitmap : bitmap + 16] = bits.to_bytes(16, "little")
        self._answers = {}
        self._memory.host_write(start, bytes(area))

    def _finish(self, valid: bytes | None = None) -> None:
        """sev_es_sync_to_ghcb(): the four registers go back, whether the event changed them or not."""
        self._show_registers()
        for name, at in _RETURNED:
            self._answers[at] = self._registers[name]
        self._write_back(valid)

    def _finish_after(self, reason: exits.Exit, handling: exits.Handling) -> exits.Handling:
        try:
            while True:
                reason = handling.send((yield reason))
        except StopIteration:
            pass
        except _Refused as refusal:
            self._answer(spec.RESPONSE_MALFORMED, refusal.reason)
        self._finish()

    # Events

    def _cpuid(self, _: int, __: int) -> None:
        registers = self._registers
        leaf = self._processor.cpuid(registers["rax"], registers["rcx"])
        registers.update(zip(("rax", "rbx", "rcx", "rdx"), leaf, strict=True))

    def _msr(self, one: int, _: int) -> None:
        registers = self._registers
        number = registers["rcx"] & 0xFFFFFFFF
        try:
            if one:
                value = (registers["rdx"] & 0xFFFFFFFF) << 32 | registers["rax"] & 0xFFFFFFFF
                msrs.write(self._processor, number, value)
            else:
                value = msrs.read(self._processor, number)
                registers.update(rax=value & 0xFFFFFFFF, rdx=value >> 32)
        except msrs.UnknownMsr:
            self._answer(spec.RESPONSE_EXCEPTION, _GENERAL_PROTECTION)

    def _ioio(self, one: int, two: int) -> exits.Handling:
        port, size = one >> 16 & 0xFFFF, one >> 4 & 7
        if one & _STRING:
            return self._string(port, size, two, into=bool(one & _IN))
        return self._port(port, size, into=bool(one & _IN))

    def _port(self, port: int, size: int, *, into: bool) -> exits.Handling:
        machine, mask = self._processor.machine, (1 << 8 * size) - 1
        if into:
            data = yield from machine.accesses.port_in(port, size, 1)
            keep = 0 if size == 4 else self._registers["rax"] & ~mask
            self._registers["rax"] = keep | int.from_bytes(data, "little")
        else:
            data = (self._registers["rax"] & mask).to_bytes(size, "little")
            yield from machine.accesses.port_out(port, size, data)

    def _string(self, port: int, size: int, count: int, *, into: bool) -> exits.Handling:
        machine = self._processor.machine
        self._check_scratch(count * size)
        done = 0
        while done < count:
            now = min(count - done, exits.DATA_SIZE // size)
            at = self._scratch + done * size
            if into:
                data = yield from machine.accesses.port_in(port, size, now)
                self._memory.host_write(at, data)
            else:
                yield from machine.accesses.port_out(port, size, self._memory.host_read(at, now * size))
            done += now

    def _check_scratch(self, size: int) -> None:
        """setup_vmgexit_scratch()."""
        start, end, page = self._scratch, self._scratch + size, self._page or 0
        if not start or end >= 1 << 64:
            raise _Refused(spec.ERROR_INVALID_SCRATCH)
        if start & -PAGE == page:
            inside = page + spec.SHARED_BUFFER <= start and end <= page + spec.RESERVED_FF0
        else:
            inside = size <= _SCRATCH_LIMIT
        if not inside:
            raise _Refused(spec.ERROR_INVALID_SCRATCH)

    def _mmio_read(self, gpa: int, size: int) -> exits.Handling:
        self._check_scratch(size)
        if self._refused(gpa, size):
            yield exits.INVALID
            return
        data = yield from self._processor.machine.accesses.mmio_read(gpa, size)
        self._memory.host_write(self._scratch, data)

    def _mmio_write(self, gpa: int, size: int) -> exits.Handling:
        self._check_scratch(size)
        if self._refused(gpa, size):
            yield exits.INVALID
            return
        data = self._memory.host_read(self._scratch, size)
        yield from self._processor.machine.accesses.mmio_write(gpa, data)

    def _refused(self, gpa: int, size: int) -> bool:
        """Only the VMM has what is there, and this kernel lets nobody ask it."""
        wrong = self._processor.vcpu.profile.wrong_vmm_mmio
        return wrong and self._processor.machine.devices.mmio_read(gpa, min(size, 8)) is None

    def _nmi_complete(self, _: int, __: int) -> None:
        return None

    def _ap_reset_hold(self, _: int, __: int) -> exits.Handling | None:
        self._hold = _NAE
        return self._reset_hold()

    def _jump_table(self, one: int, two: int) -> None:
        machine = self._processor.machine
        if one == 0:
            machine.ap_jump_table = two
        elif one == 1:
            self._answer(0, machine.ap_jump_table)
        else:
            raise _Refused(spec.ERROR_INVALID_INPUT)

    def _features(self, _: int, __: int) -> None:
        self._answer(0, _FEATURES)

    def _terminate_event(self, _: int, __: int) -> exits.Handling:
        return self._terminate()

    def _unsupported(self, _: int, __: int) -> exits.Handling:
        return _exit_to_vmm(exits.INVALID)

    def _skipped(self, code: int) -> None:
        """Exits that KVM's own handler completes without a trace the guest could see here."""
        if code in (vmcb.RDTSC, vmcb.RDTSCP):
            tsc = self._processor.machine.tsc
            self._registers.update(rax=tsc & 0xFFFFFFFF, rdx=tsc >> 32)
        elif code == vmcb.READ_DR7:
            self._registers["rax"] = self._processor.vcpu.dr7
        elif code == vmcb.VMMCALL:
            self._registers["rax"] = -1000 & (1 << 64) - 1  # KVM_ENOSYS
        elif code == vmcb.RDPMC:
            self._answer(spec.RESPONSE_EXCEPTION, _GENERAL_PROTECTION)

    _events: ClassVar[Mapping[int, Callable[[Ghcb, int, int], exits.Handling | None]]]


def _exit_to_vmm(reason: exits.Exit) -> exits.Handling:
    yield reason


Ghcb._events = {
    vmcb.CPUID: Ghcb._cpuid,
    vmcb.MSR: Ghcb._msr,
    vmcb.IOIO: Ghcb._ioio,
    spec.MMIO_READ: Ghcb._mmio_read,
    spec.MMIO_WRITE: Ghcb._mmio_write,
    spec.NMI_COMPLETE: Ghcb._nmi_complete,
    spec.AP_RESET_HOLD: Ghcb._ap_reset_hold,
    spec.AP_JUMP_TABLE: Ghcb._jump_table,
    spec.HV_FEATURES: Ghcb._features,
    spec.TERMINATE: Ghcb._terminate_event,
    spec.UNSUPPORTED_EVENT: Ghcb._unsupported,
}
