# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that labgrid hands out: its place is acquired for the run, and says where the host is.

Through the command `labgrid-client`, which is labgrid's stable interface and may live in an environment of
its own. labgrid has no expiry: a place stays acquired when whoever acquired it is killed. So the run is part
of the name under which we acquire it, ``machine/user.RUN.PID``, and a place that is held by a run of ours on
this machine whose process is no more is released.
"""

from __future__ import annotations

import ast
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_seves.errors import HostError, LeaseError

from .inventory import LABGRID, LabHost
from .lease import TELL_S, Say, Tenant

_COMMAND_S = 60.0
_AGAIN_S = 1.0  # the command cannot wait for a place
_RESOURCE = re.compile(r"^Acquired resource .*\n((?:  .*\n)+)", re.MULTILINE)
_HOLDER = re.compile(r"^  acquired: (\S+/\S+)$", re.MULTILINE)


@contextmanager
def acquired(host: LabHost, tenant: Tenant, say: Say) -> Iterator[dict[str, Any]]:
    """The place of `host` while the context lasts; gives address, port and user of its NetworkService.

    :raise LeaseError: somebody else has it, and did not release it in time.
    :raise HostError: labgrid cannot be asked, knows no such place, or the place has no NetworkService.
    """
    place = _Place(host, tenant)
    place.acquire(say)
    try:
        yield place.service()
    finally:
        try:
            place.run("release")
        except HostError as error:  # no reason to lose the verdicts
            say(str(error))


class _Place:
    """A place of labgrid, and the command for it."""

    def __init__(self, host: LabHost, tenant: Tenant) -> None:
        self._host = host
        self._tenant = tenant
        self.name = host.address.removeprefix(LABGRID)
        beside = Path(sys.executable).with_name("labgrid-client")
        self._program = shutil.which("labgrid-client") or shutil.which(beside)

    def acquire(self, say: Say) -> None:
        """Acquire it, waiting as long as the lab file says."""
        end, next_line, unheld = math.inf, 0.0, False
        while (got := self._try("acquire")).returncode:
            holder = self._holder()
            if holder is None:
                if unheld:
                    raise self._error(got)
                unheld = True  # perhaps released between the two questions: once more
                continue
            if self._is_dead(holder) and not self._try("release-from", holder).returncode:
                continue
            now = time.monotonic()
            end = min(end, now + self._host.lease_wait_s)  # from the first refusal on
            left = end - now
            if left <= 0:
                raise LeaseError(
                    f"place {self.name} is held by {holder} in labgrid, and was not released within "
                    f"{self._host.lease_wait_s:g} s. Wait longer ([host] lease_wait_s), or have it released: "
                    f"labgrid-client -p {self.name} release",
                    host=self._host.name,
                    holder=holder,
                )
            if now >= next_line:
                held = f"place {self.name} is held by {holder} in labgrid"
                say(f"{self._host.name}: {held}, waiting up to {max(round(left), 1)} s")
                next_line = now + TELL_S
            time.sleep(min(_AGAIN_S, left))

    def _holder(self) -> str | None:
        shown = _HOLDER.search(self.run("show").stdout)
        return shown[1] if shown else None

    def _is_dead(self, holder: str) -> bool:
        """It was a run of this account on this machine, which has ended without a word."""
        ours = f"{re.escape(self._tenant.machine)}/{re.escape(self._tenant.user)}"
        run = re.fullmatch(rf"{ours}\.[0-9a-f]+\.([0-9]+)", holder)
        if run is None:
            return False
        try:
            os.kill(int(run[1]), 0)
        except (ProcessLookupError, PermissionError):  # PermissionError: another user's process now
            return True
        return False

    def service(self) -> dict[str, Any]:
        """Where its NetworkService says that the host is."""
        shown = self.run("show").stdout  # may hold a password
        resources = [ast.literal_eval(text.strip()) for text in _RESOURCE.findall(shown)]
        services = [r["params"] for r in resources if r["cls"] == "NetworkService"]
        if len(services) != 1:
            raise HostError(
                f"labgrid: place {self.name}: wanted one resource NetworkService, which says where the host "
                f"is; got {[r['cls'] for r in resources]}. See labgrid-client -p {self.name} show",
                host=self._host.name,
            )
        (service,) = services
        port = self._host.port if service.get("port") is None else service["port"]
        return {
            "address": service["address"],
            "port": port,
            "user": self._host.user or service["username"],
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`labgrid-client` on this place.

        :raise HostError: it failed.
        """
        done = self._try(*words)
        if done.returncode:
            raise self._error(done)
        return done

    def _try(self, *words: str) -> subprocess.CompletedProcess[str]:
        if self._program is None:
            raise HostError(
                f"labgrid: there is no labgrid-client on PATH or beside {sys.executable}; "
                "pip install 'pytest-seves[labgrid]'",
                host=self._host.name,
            )
        where = ["-x", self._host.labgrid.coordinator] if self._host.labgrid.coordinator else []
        user = f"{self._tenant.user}.{self._tenant.run}.{self._tenant.pid}"
        try:
            return subprocess.run(
                [self._program, *where, "-p", self.name, *words],
                env={**os.environ, "LG_HOSTNAME": self._tenant.machine, "LG_USERNAME": user},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(
                f"labgrid-client {' '.join(words)}: no answer within {_COMMAND_S:g} s", host=self._host.name
            ) from error

    def _error(self, done: subprocess.CompletedProcess[str]) -> HostError:
        coordinator = self._host.labgrid.coordinator or "the default coordinator"
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        return HostError(
            f"labgrid-client with {coordinator}: {' '.join(done.args[-2:])}: exit status {done.returncode}: "
            f"{said}. Does the coordinator run, and have the place {self.name}?",
            host=self._host.name,
        )
