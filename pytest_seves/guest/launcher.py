# SPDX-License-Identifier: GPL-2.0-or-later
"""The factory behind `launch_guest`: launch once, assert many."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import RigError, Unsupported
from pytest_seves.evidence.launch import Launch
from pytest_seves.spec.sev import SevCmd

from . import qemu
from .archive import Archive, Record
from .defects import chosen_defects
from .faults import fault_rules
from .firmware_flash import host_flash
from .kept import Kept
from .kernel import host_initramfs, host_kernel
from .observe import begin, observe
from .recorded import spec_record, stored_name
from .seam import require_init2
from .spec import HOST_KERNEL, HOST_VARIABLES, NEVER, OPTIONAL_VARIABLES, PROBE_INITRD, PUT, GuestSpec
from .steps import Console

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

_PUT_TIMEOUT_S = 60.0
_PIECE = 8 << 20
_SMALL = 1 << 17
_PROBE_S = 20.0
_ALONE_S = 120.0
_LAUNCH_S, _LAUNCH_VCPU_S = 60.0, 0.5
_SETTLE_S = 3.0


class Launcher:
    """Launches guests on one host and keeps the evidence of each for the session.

    :param defects: names of defects that every launch is to have.
    :param archive: where evidence of this host is written down, None to keep it in memory only.
    """

    def __init__(
        self,
        target: Target,
        *,
        defects: tuple[str, ...] = (),
        archive: Archive | None = None,
    ) -> None:
        self._target = target
        self._defects = chosen_defects(defects)
        self._files: dict[str, str] = {}
        self._files_of: object = None
        self._unsent: dict[str, dict[str, Any]] = {}
        self._archive = archive
        self._put: dict[str, str] = {}
        self._sha256: dict[str, str] = {}
        self._records: dict[str, Record] = {}
        self._kept: dict[GuestSpec, Launch | RigError] = {}
        #: Called with the directory of a piece of evidence and with what names it in the bundle, whenever a
        #: test gets it, shared or not.
        self.on_evidence: Callable[[str, Record], None] = lambda folder, record: None
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
        self.tell(spec, kept)
        return kept

    def tell(self, spec: GuestSpec, launch: Launch) -> None:
        """Say which guest the test gets, and where its evidence is."""
        if launch.folder:
            self.on_evidence(launch.folder, self._records[launch.folder])
        self.on_launch(spec, launch)

    def made(self, name: str, make: Callable[[], str]) -> str:
        """What `make` makes by chance for a guest, a key or a session: part of the evidence.

        It is public: what is secret of it must not be in the text. A replay gives the same text again.
        """
        content = make()
        if self._archive:
            record = self._archive.made(name, content)
            self.on_evidence("", record)
        return content

    @contextmanager
    def alone(self) -> Iterator[Alone]:
        """No other guest is launched on this host meanwhile: what a launch gives back can be counted.

        :raise HostError: others do not let go of the host in time.
        """
        self._target.require_ready()  # as it is with all its ASIDs
        client = self._target.client
        with self._target.progress.work(f"{self._target.name}: waiting for other launches to end"):
            client.ahead.settle(_ALONE_S)
            client.call("alone.begin", {"timeout_s": _ALONE_S})
        try:
            yield Alone(self, self._target)
        finally:
            client.call("alone.end")

    def put(self, name: str, content: bytes) -> str:
        """Put a file on the host for guests to use; returns its path there. It goes with the agent.

        A small one is on its way only with the launch of the first guest that uses it.
        """
        if self._files_of is not self._target.client:  # a new agent has a directory of its own
            self._files, self._files_of, self._unsent = {}, self._target.client, {}
        sha256, stored = hashlib.sha256(content).hexdigest(), stored_name(name, content)
        if stored not in self._files:
            if self._files and len(content) <= _SMALL:
                path = str(PurePosixPath(next(iter(self._files.values()))).with_name(stored))
                data = base64.b64encode(content).decode()
                self._unsent[path] = {"name": stored, "data_b64": data, "sha256": sha256}
            else:
                path = self._upload(name, stored, sha256, content)
            self._files[stored] = path
            self._put[path], self._sha256[PUT + stored] = stored, sha256
        return self._files[stored]

    def _upload(self, name: str, stored: str, sha256: str, content: bytes) -> str:
        start = max(len(content) - 1, 0) // _PIECE * _PIECE  # of the last piece
        with self._uploading(name, len(content)):
            for at in range(0, start, _PIECE):
                self._put_piece(stored, sha256, content[at : at + _PIECE], offset=at, last=False)
            return self._put_piece(stored, sha256, content[start:], offset=start, last=True)

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

    def launch(self, spec: GuestSpec, *, usage: bool = False) -> Launch:
        """Launch it, whether one like it was launched before or not.

        :param usage: count what guests hold of the host, which takes being alone on it.
        """
        target = self._target
        target.require_ready()
        if spec.init_path == "INIT2":
            require_init2(target.name, target.facts)
        placed = self._on_host(spec)
        argv, limit = self._argv(placed), _LAUNCH_S + _LAUNCH_VCPU_S * spec.vcpus
        if spec.kernel or spec.variables:  # what boots for long
            limit += sum(step.timeout_s for step in spec.steps if isinstance(step, Console))
        self.launched += 1
        given = {**self._circumstances(spec), "timeout_s": limit, "usage": usage}
        unsent = [path for path in self._unsent if any(path in word for word in argv)]
        given["files"] = [self._unsent[path] for path in unsent]
        with target.progress.work(f"{target.name}: launching a {spec.vcpus}-vCPU guest"):
            launch = observe(target.client, argv, host=target.name, spec=spec, **given)
        for path in unsent:
            del self._unsent[path]
        started = datetime.fromtimestamp(target.client.ahead.since, UTC)
        return self._write(launch, spec, placed, started)

    def keep(self, spec: GuestSpec, minutes: float) -> Kept:
        """Launch it once more and leave it running for a person to look at, `minutes` at most."""
        client, limit = self._target.client, 60 * minutes
        sockets = self.put("kept", b"") + f"-{self.launched}"
        extra = (*spec.extra, *qemu.attachable(f"{sockets}.qmp", f"{sockets}.hmp"))
        kept = replace(spec, extra=extra, ends=NEVER)
        self.launched += 1
        argv = self._argv(self._on_host(kept))
        begun = begin(client, argv, spec=kept, timeout_s=limit, **self._circumstances(spec))
        where, deadline = (f"{sockets}.qmp", f"{sockets}.hmp"), time.monotonic() + begun["left_s"]
        return Kept(self._target.entry, begun["launch"], *where, deadline, begun["phase"])

    def release(self, kept: Kept) -> None:
        """Wait until a kept guest has ended, by itself, by a person or by its deadline."""
        left = 0.1 if kept.phase else max(kept.deadline - time.monotonic(), 0.0) + _SETTLE_S
        self._target.client.call("wait", {"launch": kept.number, "timeout_s": left})

    def _argv(self, placed: GuestSpec) -> tuple[str, ...]:
        facts = self._target.facts
        return qemu.arguments(
            self._heeded(placed),
            binary=self._target.entry.vmm.binary,
            firmware=facts.firmware.path or "",
            cbit=facts.cbitpos or 0,
            reduced_phys_bits=facts.reduced_phys_bits,
            properties=self._properties,
        )

    def _on_host(self, spec: GuestSpec) -> GuestSpec:
        """Names of a kernel, an initramfs and variables become the paths of files there."""
        if spec.variables in (HOST_VARIABLES, OPTIONAL_VARIABLES):
            spec = self._with_variables(spec)
        kernel = host_kernel(self._target) if spec.kernel == HOST_KERNEL else spec.kernel
        ours = spec.initrd == PROBE_INITRD
        initrd = self.put("initramfs", self._initramfs) if ours else spec.initrd
        return replace(spec, kernel=kernel, initrd=initrd)

    def _with_variables(self, spec: GuestSpec) -> GuestSpec:
        try:
            code, variables = self._flash
        except Unsupported:
            if spec.variables == OPTIONAL_VARIABLES:
                return replace(spec, firmware_via="bios", variables=None)
            raise
        firmware = self.put("code.fd", code) if code else None
        return replace(spec, firmware=firmware, variables=self.put("variables.fd", variables))

    @cached_property
    def _flash(self) -> tuple[bytes | None, bytes]:
        return host_flash(self._target)

    @cached_property
    def _initramfs(self) -> bytes:
        return host_initramfs(self._target)

    def _circumstances(self, spec: GuestSpec) -> dict[str, Any]:
        rules = (rule for defect in self._defects for rule in defect.rules)
        said = (rule for defect in self._defects for rule in defect.qmp_rules)
        return {
            "rules": (*fault_rules(spec.faults), *rules),
            "qmp_rules": tuple(said),
            "side_by_side": self._target.side_by_side(es=spec.es),
        }

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

    def _write(self, launch: Launch, spec: GuestSpec, placed: GuestSpec, started: datetime) -> Launch:
        """Write it down, where evidence is kept; the same launch, which knows where.

        :param placed: the spec with names of files on the host.
        """
        if self._archive is None:
            return launch
        record = spec_record(spec, self._put)
        more = {
            "started": started.isoformat(),
            "ended": datetime.now(UTC).isoformat(),
            "environment": self._environment(spec_record(placed, self._put)),
            "measurement": _measurement(launch),
        }
        kind = "launch" if launch.usage is None else "alone"
        named = self._archive.launch(launch, spec, record, kind, more)
        folder = self._archive.place(named)
        self._records[folder] = named
        return replace(launch, folder=folder)

    def _environment(self, placed: Record) -> dict[str, Any]:
        """What the launch was made of and on, beside what its command line says.

        :param placed: the spec with names of files on the host.
        """
        facts, asked = self._target.facts, json.dumps(placed)
        known: dict[str | None, str | None] = {facts.guest_kernel.path: facts.guest_kernel.sha256}
        known.update(self._sha256)
        image, linux = (
            {"path": placed[name], "sha256": known.get(placed[name])} if placed[name] else None
            for name in ("firmware", "kernel")
        )
        return {
            "vmm": {
                "name": self._target.entry.vmm.name,
                "path": facts.vmm.resolved or facts.vmm.path,
                "version": facts.vmm.line,
                "sha256": facts.vmm.sha256,
            },
            "firmware": image or {"path": facts.firmware.path, "sha256": facts.firmware.sha256},
            "guest_kernel": linux,
            "kernel": facts.kernel,
            "microcode": facts.microcode,
            "files": {name: sha256 for name, sha256 in self._sha256.items() if name in asked},
            "defects": [defect.name for defect in self._defects],
        }


def _measurement(launch: Launch) -> str | None:
    """What the last LAUNCH_MEASURE gave: HMAC and nonce (SEV API, LAUNCH_MEASURE), in hex."""
    given = launch.timeline.succeeded(SevCmd.KVM_SEV_LAUNCH_MEASURE)
    parts = [part.raw for event in given for part in event.command.memory if part.raw is not None]
    return parts[-1].hex() if parts else None


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
        launch = self._launcher.launch(spec, usage=True)
        self._launcher.tell(spec, launch)
        return launch

    def leave_free(self, es_asids: int | None) -> int:
        """Take SEV-ES ASIDs out of the pool until so many are left; None gives all back.

        Returns how many are held.

        :raise HostError: fewer than that were free.
        """
        return int(self._client.call("alone.hold", {"free": es_asids}, timeout_s=_ALONE_S)["held"])
