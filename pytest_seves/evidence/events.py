# SPDX-License-Identifier: GPL-2.0-or-later
"""One recorded ioctl, decoded with the layouts of :mod:`pytest_seves.spec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from errno import errorcode
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.spec import kvm, sev


@dataclass(frozen=True)
class Memory:
    """User memory that a command handed to the kernel, as it was when the command was issued."""

    address: int
    length: int
    sha256: str
    #: The bytes, for ranges of at most 4096 bytes.
    raw: bytes | None


@dataclass(frozen=True)
class SevCommand:
    """The sub-command of a KVM_MEMORY_ENCRYPT_OP."""

    id: int
    #: Firmware status, or :data:`pytest_seves.spec.sev.NO_FIRMWARE_CALL`.
    error: int
    #: The structure behind kvm_sev_cmd.data before and after, by field; empty where the command has none.
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    memory: tuple[Memory, ...]

    @property
    def name(self) -> str:
        """The header's name, ``KVM_SEV_LAUNCH_START``."""
        return sev.command_name(self.id)


@dataclass(frozen=True)
class Event:
    """An ioctl of the VMM, at entry and exit.

    `result` is the kernel's raw return value (a negative errno on failure). It is None where it was not
    recorded: for KVM_RUN, of which only the first entry of each vCPU is, and for calls that set registers.
    `input` is what the kernel saw, `output` what it left.
    """

    index: int
    time_ns: int
    duration_ns: int | None
    tid: int
    kind: str
    vm: int | None
    request: int
    argument: int
    input: bytes | None
    output: bytes | None
    result: int | None
    sev: SevCommand | None
    issue: Mapping[str, Any] | None
    rules: tuple[str, ...]
    executed: bool
    injected: bool
    #: True for a call that a signal ended before it had a result; the kernel or the VMM makes it again.
    interrupted: bool

    @property
    def name(self) -> str:
        """What people call it: the sub-command's name, or the request's, or its number."""
        if self.sev is not None:
            return self.sev.name
        if self.issue is not None:
            return sev.issue_name(self.issue["cmd"])
        return kvm.IOCTL_NAMES.get(self.request, f"ioctl {self.request:#x}")

    @property
    def command(self) -> SevCommand:
        """The SEV sub-command.

        :raise EvidenceError: the ioctl was no KVM_MEMORY_ENCRYPT_OP.
        """
        if self.sev is None:
            raise EvidenceError(f"event {self}: not a SEV command")
        return self.sev

    @property
    def vcpu(self) -> int | None:
        """Index of the vCPU whose descriptor was used, None on other descriptors."""
        return int(self.kind[5:]) if self.kind.startswith("vcpu:") else None

    @property
    def succeeded(self) -> bool:
        """True when the kernel reported success."""
        return not self.interrupted and self.result is not None and self.result >= 0

    @property
    def failed(self) -> bool:
        """True when the kernel reported an error; False also where the result was not recorded."""
        return self.result is not None and self.result < 0

    @property
    def happened(self) -> bool:
        """False for a call that a sabotage rule dropped, or that a signal ended before it had an effect."""
        return not self.interrupted and (self.executed or self.failed)

    def __str__(self) -> str:
        where = self.kind if self.vcpu is None else f"vCPU {self.vcpu}"
        if self.result is None:
            return f"#{self.index} {self.name} ({where})"
        text = f"#{self.index} {self.name} ({where}) = {self.result}"
        if self.result < 0:
            text += f" {errorcode.get(-self.result, '')}"
            if self.sev is not None:
                text += f", firmware status {sev.firmware_status_name(self.sev.error)}"
        return text


def decode_event(record: Mapping[str, Any], index: int) -> Event:
    """Decode one line of a timeline.

    :param record: the line's JSON object, as the recorder wrote it.
    :raise EvidenceError: a field is missing, of the wrong type, or does not fit its layout.
    """
    try:
        return _decode(record, index)
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(
            f"timeline event {index}: {type(error).__name__}: {error}. The recording is damaged or comes "
            "from another version of the recorder.",
            record=record,
        ) from error


def _decode(record: Mapping[str, Any], index: int) -> Event:
    entry = _bytes(record.get("in"))
    leave = entry if record.get("out") == "=" else _bytes(record.get("out"))
    request = _number(record["req"])
    command = _sev_command(record["sev"], entry, leave) if record.get("sev") else None
    return Event(
        index=index,
        time_ns=_number(record["t"]),
        duration_ns=_number_or_none(record.get("dt")),
        tid=_number(record["tid"]),
        kind=_kind(str(record["kind"])),
        vm=_number_or_none(record.get("vm")),
        request=request,
        argument=_number(record["arg"]),
        input=entry,
        output=leave,
        result=_number_or_none(record.get("ret")),
        sev=command,
        issue=_issue(record["issue"]) if record.get("issue") else None,
        rules=tuple(record.get("rules", ())),
        executed=bool(record.get("executed", True)),
        injected=bool(record.get("injected", False)),
        interrupted=bool(record.get("interrupted", False)),
    )


def _number(value: object) -> int:
    """As the recorder writes them: a recording that comes with a bundle may hold anything."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"wanted a number of 64 bits, got {str(value)[:40]!r}")
    return value


def _number_or_none(value: object) -> int | None:
    return None if value is None else _number(value)


def _kind(text: str) -> str:
    if text.startswith("vcpu:"):
        int(text[5:])
    return text


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _sev_command(record: Mapping[str, Any], entry: bytes | None, leave: bytes | None) -> SevCommand:
    identifier = int(record["id"])
    raw = leave if leave is not None else entry
    error = sev.KVM_SEV_CMD.decode(raw)["error"] if raw is not None else 0
    layout = next((data for known, data in sev.SUBCOMMAND_DATA.items() if known == identifier), None)
    before, after = (
        _bytes(record.get("in")),
        _bytes(record.get("out") if record.get("out") != "=" else record.get("in")),
    )
    return SevCommand(
        id=identifier,
        error=error,
        before=layout.decode(before[: layout.size]) if layout and before else {},
        after=layout.decode(after[: layout.size]) if layout and after else {},
        memory=tuple(
            Memory(int(part["addr"]), int(part["len"]), str(part["sha256"]), _bytes(part.get("hex")))
            for part in record.get("mem", ())
        ),
    )


def _issue(record: Mapping[str, Any]) -> Mapping[str, Any]:
    command = int(record["cmd"])
    decoded: dict[str, Any] = {"cmd": command}
    raw = _bytes(record.get("out") if record.get("out") != "=" else record.get("in"))
    if command == sev.SevIssue.SEV_PLATFORM_STATUS and raw:
        decoded["status"] = sev.SEV_USER_DATA_STATUS.decode(raw[: sev.SEV_USER_DATA_STATUS.size])
    return decoded
