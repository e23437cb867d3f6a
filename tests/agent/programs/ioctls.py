# SPDX-License-Identifier: GPL-2.0-or-later
"""Issues the ioctls of a script given as JSON and prints what each returned, as a VMM would see it.

A step is ``{"open": path, "as": name}`` or ``{"on": name, "req": number}`` with one of ``arg`` (a number),
``hex`` (a structure), ``sev`` or ``issue`` (a command number) with ``data`` (its own structure, hex).
``as`` keeps a returned descriptor, ``thread`` issues the call on a thread of its own, and
``{"pause": seconds}`` does nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import struct
import sys
import threading
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def issue(fd: int, step: dict[str, Any]) -> dict[str, Any]:
    """Issue one ioctl; what it returned and left in memory."""
    data = ctypes.create_string_buffer(bytes.fromhex(step.get("data", "")) or b"\0")
    pointer = ctypes.addressof(data) if "data" in step else 0
    raw = bytes.fromhex(step.get("hex", ""))
    if "sev" in step:
        raw = struct.pack("<IIQII", step["sev"], 0, pointer, 0, 77)
    elif "issue" in step:
        raw = struct.pack("<IQI", step["issue"], pointer, 0)
    buffer = ctypes.create_string_buffer(raw, len(raw)) if raw else None
    arg = ctypes.addressof(buffer) if buffer is not None else step.get("arg", 0)
    ret = libc.ioctl(fd, step["req"], arg)
    result = {"ret": -ctypes.get_errno() if ret == -1 else ret, "hex": buffer.raw.hex() if buffer else ""}
    if "data" in step:
        result["data"] = data.raw[: len(step["data"]) // 2].hex()
    return result


def main() -> None:
    """Run the script of the first argument."""
    descriptors: dict[str, int] = {}
    results = []
    for step in json.loads(sys.argv[1]):
        if "pause" in step:
            select.select([], [], [], step["pause"])
            continue
        if "open" in step:
            descriptors[step["as"]] = os.open(step["open"], os.O_RDWR | os.O_CLOEXEC)
            continue
        found: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda s=step, f=found: f.append(issue(descriptors[s["on"]], s)))
        if step.get("thread"):
            thread.start()
            thread.join()
        else:
            thread.run()
        results += found
        if "as" in step:
            descriptors[step["as"]] = found[0]["ret"]
    print(json.dumps(results))


main()
