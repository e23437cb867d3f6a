# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of a run: connected on first use, model hosts started once for all workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LeaseError, ModelError, UsageError
from .guest.defects import chosen_defects, kernel_settings
from .host.inventory import LABGRID, LabHost, load_host
from .options import Options
from .progress import SILENT, Progress
from .source import Given, Tell

if TYPE_CHECKING:
    from .guest.archive import Archive
    from .guest.defect import Defect
    from .guest.direct import Kvm
    from .guest.launcher import Launcher
    from .host.lease import Say, Tenant
    from .host.target import Target
    from .model.host import ModelHost

#: Where a model host of this run or a host from labgrid is, as the controller tells its workers; all JSON.
Place = dict[str, Any]
_FACTS = "facts.json"


def place_of(model: ModelHost) -> Place:
    """How a running model host is reached."""
    return {
        "address": model.address,
        "port": model.port,
        "user": model.user,
        "identity": str(model.identity),
        "host_key": model.host_key,
        "firmware": str(model.firmware),
    }


def entry_of(model: ModelHost, name: str = "model") -> LabHost:
    """A lab entry for a model host that runs, with everything else at its default."""
    return at(LabHost(name=name, file=None, address="", user="", model=model.profile), place_of(model))


def at(entry: LabHost, place: Place) -> LabHost:
    """The lab entry of a host that is at `place`; its own firmware, if it names one, stays."""
    known = {name: place[name] for name in ("address", "port", "user", "host_key") if name in place}
    entry = replace(entry, **known)
    if entry.model is None:
        return entry
    firmware = entry.firmware if entry.firmware.path else replace(entry.firmware, path=place["firmware"])
    return replace(entry, identity=Path(place["identity"]), firmware=firmware)


class Hosts:
    """Targets and launchers by the name of the host.

    :param places: model hosts that the controller started, and hosts from labgrid; None in the controller.
    :param worker: name of the xdist worker; empty in the controller.
    :param tenant: the run, as other runs see it.
    :param say: is told while another run has a host.
    :param progress: told what takes long.
    :raise InventoryError, UsageError: a host is not in the lab, or a defect is not one, or not one of it.
    """

    def __init__(
        self,
        options: Options,
        places: dict[str, Place] | None,
        worker: str,
        tenant: Tenant,
        say: Say,
        progress: Progress = SILENT,
    ) -> None:
        self._options = options
        self._tenant = tenant
        self._say = say
        self._progress = progress
        self._places = {} if places is None else places
        self._worker = worker
        self._stack = ExitStack()
        self._targets: dict[str, Target] = {}
        self._launchers: dict[str, Launcher] = {}
        self._archives: dict[str, Archive] = {}
        chosen = chosen_defects(options.defects)
        self.entries = {name: load_host(name, options.lab) for name in options.hosts}
        _require_model(chosen, self.entries.values())

    def target(self, name: str) -> Target:
        """The host called `name`, connected on first use."""
        if name not in self._targets:
            from .host.target import Target

            entry = self.entries[name]
            if _must_be_placed(entry):
                place = self._place(entry)
                if "refused" in place:
                    raise LeaseError(place["refused"], host=name)
                entry = at(entry, place)
            target = Target(entry, self._tenant, self._say, self._progress, self._keep_facts)
            self._targets[name] = self._stack.enter_context(target)
        return self._targets[name]

    def connected(self) -> list[Target]:
        """The hosts that an agent was started on."""
        return [target for target in self._targets.values() if target.connected]

    def used(self, name: str) -> Target | None:
        """The host called `name`, if a test has asked for it."""
        return self._targets.get(name)

    def launcher(self, target: Target) -> Launcher:
        """The factory behind `launch_guest`, one per host."""
        if target.name not in self._launchers:
            from .guest.launcher import Launcher

            archive = self.archive(target)
            self._launchers[target.name] = Launcher(target, defects=self._options.defects, archive=archive)
        return self._launchers[target.name]

    def suite_launcher(self, name: str, test: str, tell: Tell, given: Given) -> Launcher:
        """`launch_guest` of one test."""
        launcher = self.launcher(self.target(name))
        launcher.last = None
        launcher.on_evidence, launcher.on_launch = tell, given
        return launcher

    def suite_kvm(self, name: str, test: str, tell: Tell) -> Kvm:
        """`kvm` of one test, by its node id."""
        from .guest.direct import Kvm

        target = self.target(name)
        target.require_ready()
        return Kvm(target, test.rpartition("::")[2], self.archive(target), lambda record: tell("", record))

    def archive(self, target: Target) -> Archive | None:
        """Where evidence of this host is written down, one per host; None without ``--sev-artifacts``."""
        if self._options.artifacts and target.name not in self._archives:
            from .guest.archive import Archive

            self._archives[target.name] = Archive(self._options.artifacts, target.name, self._worker)
        return self._archives.get(target.name)

    def described(self) -> dict[str, dict[str, Any]]:
        """Each host for the bundle, without where it is."""
        return {
            name: {
                "model": entry.model,
                "description": f"model host, {entry.model}" if entry.model else "a machine of the lab",
                "facts": f"{name}/{_FACTS}",
            }
            for name, entry in self.entries.items()
        }

    def without_keys(self, text: str) -> str:
        """`text` without the paths of private keys: what is written down is handed out."""
        given = [
            (entry.identity, entry.jump.identity if entry.jump else None) for entry in self.entries.values()
        ]
        paths = {str(path) for pair in given for path in pair if path is not None}
        paths |= {str(place["identity"]) for place in self._places.values() if "identity" in place}
        for path in sorted(paths, key=len, reverse=True):
            text = text.replace(path, "<private key>")
        return text

    def _keep_facts(self, raw: dict[str, Any], now_ns: int, entry: LabHost) -> None:
        """Write down what a host is; the first process of the run that asked decides."""
        if self._options.artifacts is None:
            return
        file = self._options.artifacts / entry.name / _FACTS
        if file.exists():
            return
        from .evidence.folder import json_file, write_whole
        from .guest.archive import writing
        from .host.facts_file import facts_record

        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json_file(facts_record(raw, now_ns, entry)))

    def keep_failed(self, minutes: float, say: Callable[[str], None]) -> None:
        """Launch the guest of each host's first failure again, and wait until nobody looks at it any more."""
        kept = []
        for launcher in self._launchers.values():
            if launcher.failed:
                test, spec = launcher.failed
                guest = launcher.keep(spec, minutes)
                say(f"{guest.entry.name}: {test}: {guest.how_to_attach()}")
                kept.append((launcher, guest))
        for launcher, guest in kept:
            launcher.release(guest)

    def counts(self) -> tuple[int, int]:
        """Launches that were made here, and requests for a guest that they served."""
        own = self._launchers.values()
        return sum(launcher.launched for launcher in own), sum(launcher.served for launcher in own)

    def places(self) -> dict[str, Place]:
        """Every model host of the run, started, and every host from labgrid, acquired.

        :raise ModelError, HostError: one cannot be.
        """
        return {name: self._place(entry) for name, entry in self.entries.items() if _must_be_placed(entry)}

    def close(self) -> None:
        """Disconnect, and stop the model hosts that were started here. Idempotent."""
        self._stack.close()

    def _place(self, entry: LabHost) -> Place:
        if entry.name not in self._places:
            self._places[entry.name] = (
                self._start(entry, entry.model) if entry.model else self._acquire(entry)
            )
        return self._places[entry.name]

    def _start(self, entry: LabHost, profile: str) -> Place:
        from .model.host import ModelHost, ModelUnavailable

        if settings := kernel_settings(self._options.defects):
            profile += ("," if ":" in profile else ":") + settings
        try:
            with self._progress.work(f"{entry.name}: starting the model host"):
                model = self._stack.enter_context(ModelHost.start(profile=profile))
        except ModelUnavailable as error:
            raise ModelError(f"{entry.name}: {error}") from error
        if self._options.artifacts:
            logs = (model.guest_log, model.firmware_log, model.log)
            self._stack.callback(_keep, logs, self._options.artifacts / entry.name)
        return place_of(model)

    def _acquire(self, entry: LabHost) -> Place:
        """Where labgrid says that the host is; or why it does not hand it out, which each test is to tell."""
        from .host.labgrid import acquired

        try:
            return self._stack.enter_context(acquired(entry, self._tenant, self._say))
        except LeaseError as error:
            return {"refused": error.message.removeprefix(f"{entry.name}: ")}


def _must_be_placed(entry: LabHost) -> bool:
    """Where the host is turns out when it is started, or acquired from labgrid."""
    return entry.model is not None or entry.address.startswith(LABGRID)


def _keep(logs: Iterable[Path], folder: Path) -> None:
    """What the model wrote down: exits of each guest, commands to its firmware, and what broke in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in logs:
        if log.exists() and log.stat().st_size:
            shutil.copy(log, folder)


def _require_model(defects: Iterable[Defect], hosts: Iterable[LabHost]) -> None:
    """Refuse to make a real host's kernel wrong.

    :raise UsageError: names the defect and the host.
    """
    wrong = next((defect.name for defect in defects if defect.kernel), None)
    real = next((host.name for host in hosts if host.model is None), None)
    if wrong and real:
        raise UsageError(
            f"--sev-defect {wrong}: this defect is one of the model's kernel, and {real} is a real host; "
            "give it --sev-host model alone"
        )
