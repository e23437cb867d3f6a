# SPDX-License-Identifier: GPL-2.0-or-later
"""The factory behind `launch_guest`: launch once, assert many."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import RigError, Unsupported
from pytest_seves.evidence.launch import Launch, Usage
from pytest_seves.spec import kvm

from . import qemu
from .defects import chosen_defects
from .faults import fault_rules
from .kept import Kept
from .observe import begin, observe
from .spec import NEVER, GuestSpec, policy_name

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

_PUT_TIMEOUT_S = 60.0
_PIECE = 8 << 20
_PROBE_S = 20.0
_ALONE_S = 120.0
_LAUNCH_S, _LAUNCH_VCPU_S = 60.0, 0.5
_SETTLE_S = 3.0


class Launcher:
    """Launches guests on one host and keeps the evidence of each for the session.

    :param defects: names of defects that every launch is to have.
    :param artifacts: directory for evidence of this host, None to keep it in memory only.
    :param worker: name of the xdist worker, for the folders of its evidence.
    """

    def __init__(
        self,
        target: Target,
        *,
        defects: tuple[str, ...] = (),
        artifacts: Path | None = None,
        worker: str = "",
    ) -> None:
        self._target = target
        self._defects = chosen_defects(defects)
        self._files: dict[str, str] = {}
        self._files_of: object = None
        self._artifacts = artifacts
        self._worker = worker
        self._kept: dict[GuestSpec, Launch | RigError] = {}
        #: Called with a guest and its evidence, whenever one is asked for.
        self.on_launch: Callable[[GuestSpec, Launch], None] = lambda spec, launch: None
        #: Guests launched, and times one was asked for.
        self.launched = 0
        self.served = 0
        #: The last guest that was asked for.
        self.last: GuestSpec | None = None
        #: The first test that failed, and the last guest that it had asked for.
        self.failed: tuple[str, GuestSpec] | None = None

    def __call__(self, **options: Any) -> Launch:
        """Evidence of a launch with these options (:class:`~pytest_seves.guest.spec.GuestSpec`).

        :raise UsageError: there is no such option.
        :raise RigError: our side failed; asking again for the same guest fails at once in the same way.
        """
        self.last = spec = GuestSpec.of(**options)
        self.served += 1
        if spec not in self._kept:
            try:
                self._kept[spec] = self.launch(spec)
            except RigError as error:
                self._kept[spec] = error
        kept = self._kept[spec]
        if isinstance(kept, RigError):
            raise kept
        self.on_launch(spec, kept)
        return kept

    @contextmanager
    def alone(self) -> Iterator[Alone]:
        """No other guest is launched on this host meanwhile: what a launch gives back can be counted.

        :raise HostError: others do not let go of the host in time.
        """
        self._target.require_ready()  # as it is with all its ASIDs
        client = self._target.client
        with self._target.progress.work(f"{self._target.name}: waiting for other launches to end"):
            client.call("alone.begin", {"timeout_s": _ALONE_S})
        try:
            yield Alone(self, self._target)
        finally:
            client.call("alone.end")

    def put(self, name: str, content: bytes) -> str:
        """Put a file on the host for guests to use; returns its path there. It goes with the agent."""
        if self._files_of is not self._target.client:  # a new agent has a directory of its own
            self._files, self._files_of = {}, self._target.client
        sha256 = hashlib.sha256(content).hexdigest()
        stored = f"{sha256[:12]}-{name}"  # the same name may be asked for with another content
        if stored not in self._files:
            start = max(len(content) - 1, 0) // _PIECE * _PIECE  # of the last piece
            with self._uploading(name, len(content)):
                for at in range(0, start, _PIECE):
                    self._put_piece(stored, sha256, content[at : at + _PIECE], offset=at, last=False)
                path = self._put_piece(stored, sha256, content[start:], offset=start, last=True)
            self._files[stored] = path
        return self._files[stored]

    def _uploading(self, name: str, size: int) -> AbstractContextManager[None]:
        client = self._target.client
        before = client.sent
        return self._target.progress.work(
            f"{self._target.name}: upload of {name}",
            size,
            lambda: min((client.sent - before) * 3 // 4, size),  # base64
        )

    def _put_piece(self, name: str, sha256: str, piece: bytes, **where: Any) -> str:
        data = base64.b64encode(piece).decode()
        request = {"name": name, "data_b64": data, "sha256": sha256, **where}
        return str(self._target.client.call("file.put", request, timeout_s=_PUT_TIMEOUT_S)["path"])

    def launch(self, spec: GuestSpec) -> Launch:
        """Launch it, whether one like it was launched before or not."""
        target = self._target
        target.require_ready()
        if spec.init_path == "INIT2" and not (target.facts.vm_types or 0) >> kvm.KVM_X86_SEV_ES_VM & 1:
            raise Unsupported(
                f"{target.name}: this kernel has no KVM_SEV_INIT2: KVM_CAP_VM_TYPES has no SEV-ES VM"
            )
        argv, limit = self._argv(spec), _LAUNCH_S + _LAUNCH_VCPU_S * spec.vcpus
        self.launched += 1
        given, what = self._circumstances(spec), f"{target.name}: launching a {spec.vcpus}-vCPU guest"
        with target.progress.work(what):
            launch = observe(target.client, argv, host=target.name, spec=spec, timeout_s=limit, **given)
        if self._artifacts:
            launch = replace(launch, folder=str(self._archive(launch, spec)))
        return launch

    def keep(self, spec: GuestSpec, minutes: float) -> Kept:
        """Launch it once more and leave it running for a person to look at, `minutes` at most."""
        client, limit = self._target.client, 60 * minutes
        sockets = self.put("kept", b"") + f"-{self.launched}"
        extra = (*spec.extra, *qemu.attachable(f"{sockets}.qmp", f"{sockets}.hmp"))
        kept = replace(spec, extra=extra, ends=NEVER)
        self.launched += 1
        with begin(
            client, self._argv(kept), spec=kept, timeout_s=limit, **self._circumstances(spec)
        ) as begun:
            where = (f"{sockets}.qmp", f"{sockets}.hmp")
            return Kept(self._target.entry, begun.number, *where, begun.deadline, begun.phase)

    def release(self, kept: Kept) -> None:
        """Wait until a kept guest has ended, by itself, by a person or by its deadline."""
        left = 0.1 if kept.phase else max(kept.deadline - time.monotonic(), 0.0) + _SETTLE_S
        self._target.client.call("wait", {"launch": kept.number, "until": "exit", "timeout_s": left})

    def _argv(self, spec: GuestSpec) -> tuple[str, ...]:
        facts = self._target.facts
        return qemu.arguments(
            self._heeded(spec),
            binary=self._target.entry.vmm.binary,
            firmware=facts.firmware.path or "",
            cbit=facts.cbitpos or 0,
            reduced_phys_bits=facts.reduced_phys_bits,
            properties=self._properties,
        )

    def _circumstances(self, spec: GuestSpec) -> dict[str, Any]:
        rules = (rule for defect in self._defects for rule in defect.rules)
        said = (rule for defect in self._defects for rule in defect.qmp_rules)
        return {
            "rules": (*fault_rules(spec.faults), *rules),
            "qmp_rules": tuple(said),
            "side_by_side": self._side_by_side(spec),
        }

    def _side_by_side(self, spec: GuestSpec) -> int | None:
        """As many guests as the lab file allows, and SEV-ES guests as ASIDs were free when the run began.

        The limit on locked memory is one of each VM, and --sev-check looks at it.
        """
        free = self._target.facts.free_es_asids if spec.es else None
        limits = [limit for limit in (self._target.entry.max_guests, free) if limit]
        return min(limits, default=None)

    def _heeded(self, spec: GuestSpec) -> GuestSpec:
        """What the VMM makes of it: with some defects it does not heed all that it is told."""
        for defect in self._defects:
            spec = defect.heeded(spec)
        return spec

    @cached_property
    def _properties(self) -> frozenset[str]:
        """What the VMM's sev-guest object can be told: probed, never concluded from a version."""
        argv = [self._target.entry.vmm.binary, *qemu.LIST_PROPERTIES]
        told = self._target.client.call("exec", {"argv": argv, "timeout_s": _PROBE_S, "limit": 1 << 16})
        return qemu.sev_guest_properties(base64.b64decode(told["stdout"]).decode(errors="replace"))

    def _archive(self, launch: Launch, spec: GuestSpec) -> Path:
        folder = (self._artifacts or Path()) / "launches" / self._folder_name(spec)
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
        (folder / "qmp.txt").write_text("".join(f"{exchange}\n" for exchange in launch.qmp.exchanges))
        if launch.gdb.exchanges:
            (folder / "gdb.txt").write_text("".join(f"{s} -> {a}\n" for s, a in launch.gdb.exchanges))
        for number, dump in enumerate(launch.dumps, 1):
            (folder / f"dump-{number}.elf").write_bytes(dump)
        return folder

    def _folder_name(self, spec: GuestSpec) -> str:
        number = "-".join(filter(None, (self._worker, f"{self.launched:03}")))
        return "-".join([number, f"{spec.vcpus}vcpu", policy_name(spec.policy), *spec.faults])


class Alone:
    """Launches that nobody shares, on a host where no other guest is launched meanwhile.

    Each one's evidence says what guests held of the host before it and after it.
    """

    def __init__(self, launcher: Launcher, target: Target) -> None:
        self._launcher = launcher
        self._client = target.client

    def __call__(self, **options: Any) -> Launch:
        """Launch a guest; options as those of :class:`~pytest_seves.guest.spec.GuestSpec`."""
        self._launcher.served += 1
        self._launcher.last = spec = GuestSpec.of(**options)
        before = self._usage()
        launch = self._launcher.launch(spec)
        launch = replace(launch, usage=(before, self._usage(wanted=before)))
        self._launcher.on_launch(spec, launch)
        return launch

    def leave_free(self, es_asids: int | None) -> int:
        """Take SEV-ES ASIDs out of the pool until so many are left; None gives all back.

        Returns how many are held.

        :raise HostError: fewer than that were free.
        """
        return int(self._client.call("alone.hold", {"free": es_asids}, timeout_s=_ALONE_S)["held"])

    def _usage(self, wanted: Usage | None = None) -> Usage:
        args = {} if wanted is None else {"wanted": asdict(wanted), "settle_s": _SETTLE_S}
        told = self._client.call("usage", args)
        if None in told.values():
            name = self._client.host.name
            raise Unsupported(
                f"{name}: this host does not tell what guests hold of it: {told}. ASIDs need the "
                "misc controller (CONFIG_CGROUP_MISC), the firmware's guest count needs /dev/sev"
            )
        return Usage(**told)
