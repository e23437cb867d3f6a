# SPDX-License-Identifier: GPL-2.0-or-later
"""Which xdist worker a test goes to: one launch is made by one worker.

xdist's own groups (`xdist_group`) have no effect with pytest 9.2 (pytest-xdist issue 1386), so tests are told
apart by their ids, which is all that the controller knows of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_VCPUS = re.compile(r"[0-9]+vcpu")
#: In ids, the VMM's own choice of init path, which other tests do not name.
_OWN = "own"


class LaunchScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """As `--dist loadscope`, but by launch."""

    def __init__(self, config: pytest.Config, log: Producer | None, hosts: Sequence[str]) -> None:
        super().__init__(config, log)
        self._hosts = hosts

    def _split_scope(self, nodeid: str) -> str:
        return launch_of(nodeid, self._hosts)


def launch_of(nodeid: str, hosts: Sequence[str]) -> str:
    """The same for tests that share a launch.

    Tests with a number of vCPUs go by their parameters. The others name their guests themselves, and go by
    file. Where there are several hosts, each test's id ends with the name of one.
    """
    file, _, case = nodeid.partition("::")
    parameters = case.partition("[")[2].removesuffix("]")
    host = max((name for name in hosts if f"-{parameters}".endswith(f"-{name}")), key=len, default="")
    words = parameters.removesuffix(host).strip("-").split("-")
    if any(_VCPUS.fullmatch(word) for word in words):
        return "-".join(sorted({*words} - {_OWN})) + f"@{host}"
    return f"{file}@{host}"
