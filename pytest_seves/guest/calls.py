# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps of a program of direct KVM and SEV calls. Pure: nothing is called here.

>>> create_vm(0)
<KVM_CREATE_VM (kvm)>
>>> sev(SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA, uaddr=At("page"), len=4096).wire["pointers"]
[[0, 'page', 0]]

Descriptors go by name; "kvm", "sev", "vm" and "vcpu" unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_seves.spec import kvm as spec_kvm
from pytest_seves.spec.layout import Layout
from pytest_seves.spec.sev import (
    SEV_USER_DATA_STATUS,
    SUBCOMMAND_DATA,
    SevCmd,
    SevIssue,
    command_name,
)

PAGE = 4096
_INITS = (SevCmd.KVM_SEV_INIT, SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT2)
_RUN_LIMIT_S = 1.0


@dataclass(frozen=True)
class At:
    """The address of a named memory on the host, as the value of a field."""

    memory: str
    offset: int = 0


@dataclass(frozen=True)
class Step:
    """One call. `wire` is what the agent reads (:mod:`pytest_seves.agent.program`).

    :param needed: the program ends here when the call is refused.
    """

    label: str
    wire: Mapping[str, Any]
    needed: bool = False

    def __repr__(self) -> str:
        return f"<{self.label}>"


Steps = Step | Iterable["Steps"]


def flat(steps: Iterable[Steps]) -> Iterator[Step]:
    """The steps of nested groups, in order."""
    for step in steps:
        if isinstance(step, Step):
            yield step
        else:
            yield from flat(step)


def needed(*steps: Steps) -> tuple[Step, ...]:
    """The same steps, of which each must succeed for the next one to be run."""
    return tuple(replace(step, needed=True) for step in flat(steps))


# Devices, machines, memory


def open_kvm(name: str = "kvm") -> Step:
    """Open /dev/kvm."""
    return Step("open /dev/kvm", {"do": "open", "path": "/dev/kvm", "as": name})


def open_sev(name: str = "sev") -> Step:
    """Open /dev/sev."""
    return Step("open /dev/sev", {"do": "open", "path": "/dev/sev", "as": name})


def close(name: str) -> Step:
    """Close a descriptor."""
    return Step(f"close ({name})", {"do": "close", "on": name})


def create_vm(vm_type: int, name: str = "vm", on: str = "kvm") -> Step:
    """KVM_CREATE_VM of a type."""
    return ioctl(spec_kvm.KVM_CREATE_VM, on, vm_type, makes=name)


def create_vcpu(identifier: int, name: str = "vcpu", on: str = "vm") -> Step:
    """KVM_CREATE_VCPU."""
    return ioctl(spec_kvm.KVM_CREATE_VCPU, on, identifier, makes=name)


def memory(name: str, size: int = PAGE, content: bytes = b"") -> Step:
    """Anonymous pages, with `content` at their start."""
    return Step(f"memory ({name})", {"do": "memory", "as": name, "size": size, "hex": content.hex()})


def peek(name: str, size: int, offset: int = 0) -> Step:
    """Read such pages."""
    return Step(f"peek ({name})", {"do": "peek", "of": name, "size": size, "offset": offset})


# Requests


def ioctl(
    request: int, on: str, argument: int | bytes | Mapping[str, Any] = 0, *, makes: str | None = None
) -> Step:
    """Any request, with a number or a structure.

    :param argument: a mapping gives fields of :data:`LAYOUTS`, of which some may be :class:`At`.
    :param makes: name of the descriptor that the request returns.
    """
    label = f"{spec_kvm.IOCTL_NAMES.get(request, f'ioctl {request:#x}')} ({on})"
    wire: dict[str, Any] = {"do": "ioctl", "on": on, "request": request}
    if isinstance(argument, int):
        wire["arg"] = argument
    elif isinstance(argument, bytes):
        wire["hex"] = argument.hex()
    else:
        wire.update(_structure(LAYOUTS[request], argument))
    return Step(label, {**wire, **({"as": makes} if makes else {})})


#: Structures that :func:`ioctl` takes by their fields.
LAYOUTS: Mapping[int, Layout] = {
    spec_kvm.KVM_SET_USER_MEMORY_REGION: spec_kvm.USERSPACE_MEMORY_REGION,
    spec_kvm.KVM_SET_REGS: spec_kvm.REGS,
    spec_kvm.KVM_SET_SREGS: spec_kvm.SREGS,
    spec_kvm.KVM_SET_DEBUGREGS: spec_kvm.DEBUGREGS,
    spec_kvm.KVM_MEMORY_ENCRYPT_REG_REGION: spec_kvm.ENC_REGION,
    spec_kvm.KVM_GET_DEVICE_ATTR: spec_kvm.DEVICE_ATTR,
}


def structure(request: int, on: str = "vcpu", fill: bytes = b"\0") -> Step:
    """A request with a structure of the size that its number states, every byte of it `fill`."""
    return ioctl(request, on, fill * (request >> 16 & 0x3FFF))


def check_extension(capability: int, on: str = "vm") -> Step:
    """KVM_CHECK_EXTENSION."""
    return ioctl(spec_kvm.KVM_CHECK_EXTENSION, on, capability)


def device_attribute(group: int, number: int, at: str, on: str = "kvm") -> tuple[Step, ...]:
    """KVM_GET_DEVICE_ATTR into a page of its own."""
    attribute = {"group": group, "attr": number, "addr": At(at)}
    return memory(at), ioctl(spec_kvm.KVM_GET_DEVICE_ATTR, on, attribute)


def msrs(request: int, index: int, on: str = "vcpu") -> Step:
    """KVM_GET_MSRS or KVM_SET_MSRS of one register, whose value is 0."""
    return ioctl(request, on, spec_kvm.MSRS.encode(nmsrs=1) + spec_kvm.MSR_ENTRY.encode(index=index))


def run(on: str = "vcpu", *, immediate_exit: bool = False, limit_s: float = _RUN_LIMIT_S) -> Step:
    """KVM_RUN; a guest that executes is kicked out of it after `limit_s`."""
    wire = {"do": "run", "on": on, "immediate_exit": immediate_exit, "limit_s": limit_s}
    return Step(f"KVM_RUN ({on})", wire)


def sev(command: int, on: str = "vm", *, device: str | None = None, **values: Any) -> Step:
    """A sub-command of KVM_MEMORY_ENCRYPT_OP.

    :param device: the /dev/sev that goes with it; without it "sev" but for an init command, which needs none.
    :param values: fields of the sub-command's structure; none is a NULL pointer.
    """
    wire: dict[str, Any] = {"do": "sev", "on": on, "command": int(command)}
    if device or command not in _INITS:
        wire["sev"] = device or "sev"
    if values or command in (SevCmd.KVM_SEV_INIT2, SevCmd.KVM_SEV_GUEST_STATUS):
        wire.update(_structure(SUBCOMMAND_DATA[SevCmd(command)], values))
    return Step(f"{command_name(command)} ({on})", wire)


def platform_status(on: str = "sev") -> Step:
    """SEV_PLATFORM_STATUS; its answer decodes as SEV_USER_DATA_STATUS."""
    wire = {"do": "issue", "on": on, "command": int(SevIssue.SEV_PLATFORM_STATUS)}
    return Step(f"SEV_PLATFORM_STATUS ({on})", {**wire, "hex": bytes(SEV_USER_DATA_STATUS.size).hex()})


def asids_in_use() -> Step:
    """Units of the misc controller in use; its answer has them in `values`."""
    return Step("misc.current", {"do": "misc"})


def _structure(layout: Layout, values: Mapping[str, Any]) -> dict[str, Any]:
    addresses = {name: value for name, value in values.items() if isinstance(value, At)}
    plain = {name: value for name, value in values.items() if name not in addresses}
    return {
        "hex": layout.encode(**plain).hex(),
        "pointers": [[layout.field(name).offset, at.memory, at.offset] for name, at in addresses.items()],
    }
