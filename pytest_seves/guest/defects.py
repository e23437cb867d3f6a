# SPDX-License-Identifier: GPL-2.0-or-later
"""Named ways to be wrong (`--sev-defect`): for a VMM by the recorder's sabotage, for a kernel by the model.

Each defect lists the requirements that it breaks. The project's tests prove that exactly those turn red:
a conformance check that was never seen to fail is worth nothing.
"""

from __future__ import annotations

from errno import EINVAL
from typing import Any

from pytest_seves.errors import UsageError
from pytest_seves.spec import kvm, sev
from pytest_seves.spec.layout import Layout
from pytest_seves.spec.sev import Policy, SevCmd, SevIssue

from .defect import Defect
from .faults import Rule, on_sev
from .kernel_defects import KERNEL_DEFECTS

_START = sev.KVM_SEV_LAUNCH_START_DATA
_CMD = sev.KVM_SEV_CMD
_STATUS = sev.SEV_USER_DATA_STATUS
_INIT2 = sev.KVM_SEV_INIT2_DATA


def _policy_bits(name: str, value: int, mask: int, after: str | None = None) -> Rule:
    policy = _START.field("policy")
    return on_sev(
        name,
        SevCmd.KVM_SEV_LAUNCH_START,
        "rewrite",
        where="data",
        offset=policy.offset,
        size=policy.size,
        value=value,
        mask=mask,
        after=after,
    )


def _command_id(name: str, seen: SevCmd, sent: SevCmd) -> Rule:
    identifier = _CMD.field("id")
    return on_sev(
        name, seen, "rewrite", where="arg", offset=identifier.offset, size=identifier.size, value=int(sent)
    )


def _register(name: str, request: int, layout: Layout, field: str, value: int, *, vcpu: int) -> Rule:
    """Another value in the first 8 bytes of a field, whenever the VMM sets it."""
    where = {"where": "arg", "offset": layout.field(field).offset, "size": 8, "value": value}
    return {"name": name, "request": request, "vcpu": vcpu, "action": "rewrite", **where}


def _once_protected(name: str, request: int, action: str, **parameters: Any) -> tuple[Rule, ...]:
    """A rule for calls after a LAUNCH_UPDATE_VMSA that succeeded."""
    marker = f"{name}-from-here"
    nothing = {"where": "arg", "offset": _CMD.field("error").offset, "size": 4, "value": 0, "mask": 0}
    return (
        on_sev(marker, SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, "rewrite-result", **nothing),
        {"name": name, "request": request, "action": action, "after": marker, **parameters},
    )


def _smm(name: str, action: str, ret: int) -> Rule:
    request, capability = kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_X86_SMM
    return {"name": name, "request": request, "arg": capability, "action": action, "ret": ret}


_ALL = (
    Defect(
        "es-init-as-init",
        "initialises a guest with an ES policy with KVM_SEV_INIT",
        frozenset({"INIT-1", "INIT-5"}),
        (_command_id("es-init-as-init", SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT),),
    ),
    Defect(
        "plain-as-es-init",
        "initialises a guest without an ES policy with KVM_SEV_ES_INIT",
        frozenset({"INIT-2"}),
        (_command_id("plain-as-es-init", SevCmd.KVM_SEV_INIT, SevCmd.KVM_SEV_ES_INIT),),
    ),
    Defect(
        "init-twice",
        "initialises the VM a second time",
        frozenset({"INIT-3"}),
        (
            on_sev(
                "init-twice-es",
                SevCmd.KVM_SEV_ES_INIT,
                "inject-after",
                inject={"sev": int(SevCmd.KVM_SEV_ES_INIT)},
            ),
            on_sev(
                "init-twice", SevCmd.KVM_SEV_INIT, "inject-after", inject={"sev": int(SevCmd.KVM_SEV_INIT)}
            ),
        ),
    ),
    Defect(
        "init2-on-default-vm",
        "uses KVM_SEV_INIT2 on a VM of the default type",
        frozenset({"INIT-4"}),
        (_command_id("init2-on-default-vm", SevCmd.KVM_SEV_ES_INIT, SevCmd.KVM_SEV_INIT2),),
    ),
    Defect(
        "quiet-fallback",
        "goes on with plain SEV when the kernel refuses SEV-ES",
        frozenset({"INIT-5", "LIFECYCLE-6"}),
        (
            on_sev("fallback", SevCmd.KVM_SEV_ES_INIT, "retry-as", retry=int(SevCmd.KVM_SEV_INIT)),
            _policy_bits("fallback-policy", 0, int(Policy.ES), after="fallback"),
            on_sev("fallback-vmsa", SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, "drop", after="fallback"),
        ),
    ),
    Defect(
        "policy-changed",
        "adds NOSEND to the requested policy",
        frozenset({"INIT-7", "POLICY-1"}),
        (_policy_bits("policy-changed", int(Policy.NOSEND), int(Policy.NOSEND)),),
    ),
    Defect(
        "policy-api-cleared",
        "drops the least API version from the policy",
        frozenset({"POLICY-1", "POLICY-2"}),
        (_policy_bits("policy-api-cleared", 0, 0xFFFF0000),),
    ),
    Defect(
        "smm-allowed",
        "takes a SEV-ES VM for one with system management mode",
        frozenset({"SMM-1", "SMM-2"}),
        (_smm("smm-allowed", "return", 1),),
    ),
    Defect(
        "smm-not-asked",
        "does not ask the VM for system management mode, and takes it for absent",
        frozenset({"SMM-4", "SMM-5"}),
        (_smm("smm-not-asked", "drop", 0),),
    ),
    Defect(
        "irqchip-option-ignored",
        "ignores kernel-irqchip=off and launches with the in-kernel irqchip",
        frozenset({"IRQCHIP-1", "IRQCHIP-2"}),
        ignores=frozenset({"kernel-irqchip"}),
    ),
    Defect(
        "firmware-ignored",
        "boots its usual firmware whichever it was told to",
        frozenset({"AP-BOOT-6", "AP-BOOT-7", "AP-BOOT-8", "AP-BOOT-9"}),
        ignores_firmware=True,
    ),
    Defect(
        "irqchip-refused",
        "cannot create the in-kernel irqchip",
        frozenset({"IRQCHIP-3", "SMM-5", "POLICY-1"}),
        (
            {
                "name": "irqchip-refused",
                "request": kvm.KVM_CREATE_IRQCHIP,
                "action": "fail",
                "errno": EINVAL,
            },
        ),
    ),
    Defect(
        "platform-version-changed",
        "reports another firmware build than the platform has",
        frozenset({"INIT-8"}),
        (
            {
                "name": "platform-version-changed",
                "request": sev.SEV_ISSUE_CMD,
                "issue": int(SevIssue.SEV_PLATFORM_STATUS),
                "action": "rewrite-result",
                "where": "issue-data",
                "offset": _STATUS.field("build").offset,
                "size": _STATUS.field("build").size,
                "value": 0xEE,
            },
        ),
    ),
    Defect(
        "vmsa-update-dropped",
        "does not measure the vCPUs",
        frozenset({"VMSA-1"}),
        (on_sev("vmsa-update-dropped", SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, "drop"),),
    ),
    Defect(
        "vmsa-update-after-measure",
        "measures the vCPUs after LAUNCH_MEASURE, and goes on when the firmware refuses it",
        frozenset({"VMSA-1", "VMSA-2", "VMSA-7"}),
        (
            on_sev(
                "vmsa-update-after-measure",
                SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA,
                "defer",
                until={"sev": int(SevCmd.KVM_SEV_LAUNCH_MEASURE)},
            ),
        ),
    ),
    Defect(
        "vmsa-update-twice",
        "measures the vCPUs twice",
        frozenset({"VMSA-3"}),
        (
            on_sev(
                "vmsa-update-twice",
                SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA,
                "inject-after",
                inject={"sev": int(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)},
            ),
        ),
    ),
    Defect(
        "vmsa-update-without-es",
        "issues LAUNCH_UPDATE_VMSA for a guest without an ES policy",
        frozenset({"VMSA-4"}),
        (
            on_sev("no-es", SevCmd.KVM_SEV_INIT, "return", ret=0),  # changes nothing: marks the guest
            on_sev(
                "vmsa-update-without-es",
                SevCmd.KVM_SEV_LAUNCH_UPDATE_DATA,
                "inject-after",
                inject={"sev": int(SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)},
                limit=1,
                after="no-es",
            ),
        ),
    ),
    Defect(
        "reset-state-wrong",
        "gives vCPU 0 a stack pointer at reset",
        frozenset({"VMSA-5"}),
        (_register("reset-state-wrong", kvm.KVM_SET_REGS, kvm.REGS, "rsp", 0x7000, vcpu=0),),
    ),
    Defect(
        "ap-reset-vector-wrong",
        "starts the first AP at the BSP's reset vector",
        frozenset({"AP-BOOT-1", "AP-BOOT-9", "VMSA-5"}),
        (
            _register("ap-reset-vector-wrong", kvm.KVM_SET_SREGS, kvm.SREGS, "cs", 0xFFFF0000, vcpu=1),
            _register("ap-reset-vector-wrong-2", kvm.KVM_SET_SREGS2, kvm.SREGS2, "cs", 0xFFFF0000, vcpu=1),
        ),
    ),
    Defect(
        "bsp-reset-vector-wrong",
        "starts the BSP twelve bytes after the reset vector",
        frozenset({"AP-BOOT-2", "VMSA-5"}),
        # Where OVMF jumps to its 16-bit code, so that the guest goes on: what else it met would be chance.
        (_register("bsp-reset-vector-wrong", kvm.KVM_SET_REGS, kvm.REGS, "rip", 0xFFFC, vcpu=0),),
    ),
    Defect(
        "register-write-after-vmsa",
        "writes the registers of vCPU 0 after LAUNCH_UPDATE_VMSA",
        frozenset({"VMSA-6"}),
        (
            on_sev(
                "register-write-after-vmsa",
                SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA,
                "inject-after",
                inject={"request": kvm.KVM_SET_REGS, "in": kvm.REGS.encode(rip=0xFFF0).hex(), "vcpu": 0},
            ),
        ),
    ),
    Defect(
        "vmsa-error-ignored",
        "goes on when LAUNCH_UPDATE_VMSA fails",
        frozenset({"VMSA-7"}),
        (on_sev("vmsa-error-ignored", SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA, "return", ret=0),),
    ),
    Defect(
        "init2-flags",
        "gives KVM_SEV_INIT2 a flag that no kernel knows",
        frozenset({"INIT-6"}),
        (
            on_sev(
                "init2-flags",
                SevCmd.KVM_SEV_INIT2,
                "rewrite",
                where="data",
                offset=_INIT2.field("flags").offset,
                size=_INIT2.field("flags").size,
                value=1,
            ),
        ),
    ),
    Defect(
        "register-read-fails",
        "reads registers of a protected vCPU in a way that fails",
        frozenset({"REGISTERS-1"}),
        _once_protected("register-read-fails", kvm.KVM_GET_REGS, "fail", errno=EINVAL),
    ),
    Defect(
        "register-leaked",
        "shows a register that only the guest can know",
        frozenset({"REGISTERS-3"}),
        _once_protected(
            "register-leaked",
            kvm.KVM_GET_REGS,
            "rewrite-result",
            where="arg",
            offset=kvm.REGS.field("rbx").offset,
            size=8,
            value=0x5EC2E7,
        ),
    ),
    Defect(
        "cont-swallowed",
        "says that it continues a stopped guest, and does not",
        frozenset({"REGISTERS-4"}),
        qmp_rules=({"name": "cont-swallowed", "command": "cont", "answer": {"return": {}}},),
    ),
    Defect(
        "guest-debug-accepted",
        "takes the kernel's refusal of KVM_SET_GUEST_DEBUG for success",
        frozenset({"REGISTERS-6"}),
        (
            {
                "name": "guest-debug-accepted",
                "request": kvm.KVM_SET_GUEST_DEBUG,
                "action": "drop",
                "ret": 0,
            },
        ),
    ),
    Defect(
        "reset-hangs",
        "neither ends nor rebuilds a guest that was reset, nor ends one that powers off",
        frozenset({"LIFECYCLE-1", "LIFECYCLE-9", "BOOT-4"}),
        arguments=("-action", "shutdown=pause"),
    ),
    Defect(
        "reset-unexplained",
        "ends a guest that was reset, and does not say why",
        frozenset({"LIFECYCLE-1", "BOOT-5"}),
        arguments=("-action", "reboot=shutdown"),
    ),
    Defect(
        "kernel-cpus-lost",
        "tells a kernel to use one CPU alone",
        frozenset({"BOOT-1", "BOOT-3"}),
        kernel_words="nosmp",
    ),
    Defect(
        "kernel-unencrypted",
        "leaves a guest that brings its kernel without memory encryption",
        frozenset({"BOOT-2"}),
        leaves_kernels_plain=True,
    ),
    Defect(
        "migration-started",
        "takes a migration or a snapshot of a SEV-ES guest for possible",
        frozenset({"LIFECYCLE-2"}),
        qmp_rules=(
            {"name": "migration-started", "command": "migrate", "answer": {"return": {}}},
            {
                "name": "snapshot-taken",
                "command": "human-monitor-command",
                "argument": "savevm",
                "answer": {"return": ""},
            },
        ),
    ),
    Defect(
        "discard-device-left-out",
        "takes a device that discards memory, and leaves it out",
        frozenset({"LIFECYCLE-8"}),
        ignores_devices=frozenset({"virtio-mem-pci"}),
    ),
)

_KERNEL = tuple(
    Defect(name, f"the model's kernel {what}", breaks, kernel=settings)
    for name, (what, breaks, settings) in KERNEL_DEFECTS.items()
)

DEFECTS = {defect.name: defect for defect in (*_ALL, *_KERNEL)}


def chosen_defects(names: tuple[str, ...]) -> tuple[Defect, ...]:
    """The named defects, in order.

    :raise UsageError: there is no such defect; the message lists those that there are.
    """
    for name in names:
        if name not in DEFECTS:
            listing = "".join(f"\n  {defect.name}: {defect.what}" for defect in DEFECTS.values())
            raise UsageError(f"--sev-defect: no defect {name!r}; there are:{listing}")
    return tuple(DEFECTS[name] for name in names)


def kernel_settings(names: tuple[str, ...]) -> str:
    """What the named defects add to the name of the model's profile: ``a=Y,b=400``."""
    settings = {key: value for defect in chosen_defects(names) for key, value in defect.kernel.items()}
    return ",".join(f"{key}={_setting(value)}" for key, value in settings.items())


def _setting(value: int) -> str:
    return "NY"[value] if isinstance(value, bool) else str(value)
