# SPDX-License-Identifier: GPL-2.0-or-later
"""The factory behind `launch_guest`: launch once, assert many."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import RigError, Unsupported
from pytest_seves.evidence.launch import Launch
from pytest_seves.spec import kvm

from . import qemu
from .defects import chosen_defects
from .faults import fault_rules
from .observe import observe
from .spec import GuestSpec, policy_name

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

_PUT_TIMEOUT_S = 60.0
_PROBE_S = 20.0


class Launcher:
    """Launches guests on one host and keeps the evidence of each for the session.

    :param defects: names of defects that every launch is to have.
    :param artifacts: directory for evidence of this host, None to keep it in memory only.
    """

    def __init__(
        self, target: Target, *, defects: tuple[str, ...] = (), artifacts: Path | None = None
    ) -> None:
        self._target = target
        chosen = chosen_defects(defects)
        self._rules = tuple(rule for defect in chosen for rule in defect.rules)
        self._ignored = frozenset(name for defect in chosen for name in defect.ignores)
        self._ignores_firmware = any(defect.ignores_firmware for defect in chosen)
        self._files: dict[tuple[str, str], str] = {}
        self._artifacts = artifacts
        self._kept: dict[GuestSpec, Launch | RigError] = {}
        #: Guests launched, and times one was asked for.
        self.launched = 0
        self.served = 0

    def __call__(self, **options: Any) -> Launch:
        """Evidence of a launch with these options (:class:`~pytest_seves.guest.spec.GuestSpec`).

        :raise UsageError: there is no such option.
        :raise RigError: our side failed; asking again for the same guest fails at once in the same way.
        """
        spec = GuestSpec.of(**options)
        self.served += 1
        if spec not in self._kept:
            try:
                self._kept[spec] = self._launch(spec)
            except RigError as error:
                self._kept[spec] = error
        kept = self._kept[spec]
        if isinstance(kept, RigError):
            raise kept
        return kept

    def put(self, name: str, content: bytes) -> str:
        """Put a file on the host for guests to use; returns its path there. It is gone when the run ends."""
        key = (name, hashlib.sha256(content).hexdigest())
        if key not in self._files:
            request = {"name": name, "data_b64": base64.b64encode(content).decode(), "sha256": key[1]}
            told = self._target.client.call("file.put", request, timeout_s=_PUT_TIMEOUT_S)
            self._files[key] = str(told["path"])
        return self._files[key]

    def _launch(self, spec: GuestSpec) -> Launch:
        target = self._target
        target.require_ready()
        if spec.init_path == "INIT2" and not (target.facts.vm_types or 0) >> kvm.KVM_X86_SEV_ES_VM & 1:
            raise Unsupported(
                f"{target.name}: this kernel has no KVM_SEV_INIT2: KVM_CAP_VM_TYPES has no SEV-ES VM"
            )
        heeded = tuple(option for option in spec.machine_options if option[0] not in self._ignored)
        argv = qemu.arguments(
            replace(spec, machine_options=heeded, firmware=None if self._ignores_firmware else spec.firmware),
            binary=target.entry.vmm.binary,
            firmware=target.facts.firmware.path or "",
            cbit=target.facts.cbitpos or 0,
            reduced_phys_bits=target.facts.reduced_phys_bits,
            properties=self._properties,
        )
        rules = (*fault_rules(spec.faults), *self._rules)
        self.launched += 1
        launch = observe(target.client, argv, host=target.name, rules=rules, paused=spec.paused)
        if self._artifacts:
            self._archive(launch, spec)
        return launch

    @cached_property
    def _properties(self) -> frozenset[str]:
        """What the VMM's sev-guest object can be told: probed, never concluded from a version."""
        argv = [self._target.entry.vmm.binary, *qemu.LIST_PROPERTIES]
        told = self._target.client.call("exec", {"argv": argv, "timeout_s": _PROBE_S, "limit": 1 << 16})
        return qemu.sev_guest_properties(base64.b64decode(told["stdout"]).decode(errors="replace"))

    def _archive(self, launch: Launch, spec: GuestSpec) -> None:
        assert self._artifacts is not None
        folder = self._artifacts / "launches" / _folder_name(spec, self.launched)
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "argv": launch.argv,
            "exit": str(launch.exit),
            "phase": launch.phase,
            "mode": launch.timeline.mode,
        }
        (folder / "launch.json").write_text(json.dumps(about, indent=2) + "\n")
        (folder / "timeline.jsonl").write_bytes(zlib.decompress(launch.recording_z))
        (folder / "timeline.txt").write_text("".join(f"{event}\n" for event in launch.timeline.recorded))
        for name in ("console", "stdout", "stderr"):
            (folder / f"{name}.txt").write_text(getattr(launch, name).text)


def _folder_name(spec: GuestSpec, number: int) -> str:
    return "-".join([f"{number:03}", f"{spec.vcpus}vcpu", policy_name(spec.policy), *spec.faults])
