# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a case that was left out is explained: by a reason of levels.toml that nothing else contradicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pytest_seves.evidence.bundle import Result
from pytest_seves.host.facts import HostFacts
from pytest_seves.spec import kvm

from .levels import Reason


@dataclass(frozen=True)
class Seen:
    """What a reason is held against.

    :param facts: of the host, None where it told none.
    :param ran_init2: a test with a guest of KVM_SEV_INIT2 passed on the host.
    """

    facts: HostFacts | None
    ran_init2: bool

    @classmethod
    def of(cls, facts: HostFacts | None, results: Iterable[Result]) -> Seen:
        """What the results of one host say."""
        passed = (result.parameters for result in results if result.outcome == "passed")
        return cls(facts, any(parameters.get("init_path") == "INIT2" for parameters in passed))


def _kernel_without_init2(seen: Seen, result: Result) -> str:
    types = seen.facts.vm_types if seen.facts else None
    if types is None:
        return ""
    if types >> kvm.KVM_X86_SEV_ES_VM & 1 or seen.ran_init2:
        return ""
    return f"the host's facts agree: KVM_CAP_VM_TYPES is {types:#x}"


def _vmm_without_init2(seen: Seen, result: Result) -> str:
    return "" if seen.ran_init2 else "no guest of KVM_SEV_INIT2 was launched in this run"


def _asked_in_evidence(seen: Seen, result: Result) -> str:
    return "the question and its answer are in the evidence" if result.evidence else ""


#: By the name in levels.toml: what confirms the reason, empty where something contradicts it or nothing does.
_CONFIRMED: Mapping[str, Callable[[Seen, Result], str]] = {
    "kernel-without-init2": _kernel_without_init2,
    "vmm-without-init2": _vmm_without_init2,
    "asked-in-evidence": _asked_in_evidence,
}


def explained(result: Result, reasons: Iterable[Reason], seen: Seen) -> str:
    """What confirms the reason for which a test was skipped; empty: it is not explained."""
    known = (reason for reason in reasons if reason.why in result.why)
    return next(filter(None, (_CONFIRMED[reason.fact](seen, result) for reason in known)), "")
