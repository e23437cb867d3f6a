# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the host is still the host that the run began with: one cheap look, undecoded. Runs on the host."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import time
from typing import Any, Dict, List, Optional

from pytest_seves.agent import facts

Json = Dict[str, Any]

LINES = 100
"""Lines of the kernel's log that are told at most, and as many of those that are alarming."""
_LINE = 500
_LOG_LIMIT = 64 << 20
#: What a kernel that is broken says. User space's own faults ("traps: qemu[7] general protection fault") are
#: the product's, hence the anchors.
_ALARM = re.compile(
    r"\bBUG:|kernel BUG at|\bOops\b|^general protection fault|^rcu: .*stall|^kvm\S*: .*\berror\b",
    re.IGNORECASE,
)


_RECORD = re.compile(r"\d+,\d+,\d+,[^;]*;")


def look(args: Json) -> Json:
    """Boot, clocks, space, ASIDs, firmware, and the kernel's log since record `since`.

    :param args: ``since``, the `next` of an earlier answer; without it only `next` is found out.
    """
    return {
        "boot_id": facts.item(lambda: facts.read("/proc/sys/kernel/random/boot_id").strip()),
        "realtime_ns": time.time_ns(),
        "monotonic_ns": time.monotonic_ns(),
        "space": {path: facts.item(functools.partial(_space, path)) for path in _directories()},
        "misc": facts.item(facts.misc),
        "platform_status": facts.item(facts.platform_status),
        "log": facts.item(lambda: _log(args.get("since"))),
    }


def _directories() -> List[str]:
    """Where the agent writes: temporary files, and the program itself."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = cache if cache.startswith("/") else os.path.join(os.path.expanduser("~"), ".cache")
    return [tempfile.gettempdir(), os.path.join(base, "pytest-seves")]


def _space(path: str) -> Json:
    info = os.statvfs(path)
    return {"free": info.f_bavail * info.f_frsize, "files": info.f_favail if info.f_files else None}


def _log(since: Optional[int]) -> Json:
    """Records of /dev/kmsg: ``6,493,14929965009,-;text``, then its properties (ABI/testing/dev-kmsg).

    Needs CAP_SYSLOG where kernel.dmesg_restrict is set.
    """
    following, lines, alarms = since or 0, [], []
    for record in _records():
        head, _, text = record.partition(";")
        number = int(head.split(",")[1])
        following = max(following, number + 1)
        if since is not None and number >= since:
            lines.append(text[:_LINE])
            if _ALARM.search(text):
                alarms.append(text[:_LINE])
    dropped = max(len(lines) - LINES, 0)
    return {"next": following, "lines": lines[dropped:], "dropped": dropped, "alarms": alarms[:LINES]}


def _records() -> List[str]:
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    text = bytearray()
    try:
        with contextlib.suppress(BlockingIOError):  # its end
            while len(text) < _LOG_LIMIT:
                try:
                    data = os.read(descriptor, 1 << 16)
                except BrokenPipeError:  # overwritten meanwhile: the next read goes on with what is there
                    continue
                if not data:
                    break
                text += data
    finally:
        os.close(descriptor)
    return [line for line in text.decode("utf-8", "replace").split("\n") if _RECORD.match(line)]
