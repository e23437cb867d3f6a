# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests are made of, on the host: a firmware image, a Linux kernel, and that kernel's msr driver."""

from __future__ import annotations

import base64
import errno
import glob
import hashlib
import os
import stat
import struct
from typing import Any

FIRMWARE_TAIL = 8192
FIRMWARE_LIMIT = 64 << 20
_HEAD = 1 << 16
_MSR = "/lib/modules/{}/kernel/arch/x86/kernel/msr.ko*"

Json = dict[str, Any]


def firmware(path: str | None) -> Json:
    """A firmware image: size, SHA-256, and its last bytes, where its table is."""
    if not path:
        return {"path": None, "error": "no firmware named"}
    try:
        return {"path": path, **regular(path, FIRMWARE_LIMIT, FIRMWARE_TAIL)}
    except OSError as error:
        return {"path": path, **_failure(error)}


def kernel(path: str | None, msr_module: str | None = None) -> Json:
    """A kernel for guests: size, SHA-256, its release, and its msr driver where there is one as a module.

    :param path: None for the kernel that this host runs, where distributions put it; empty for none.
    """
    if path == "":
        return {"path": None, "error": "no kernel named"}
    path = path or f"/boot/vmlinuz-{os.uname().release}"
    try:
        facts = {"path": path, **regular(path), "release": _release(path)}
    except OSError as error:
        return {"path": path, **_failure(error)}
    found = sorted(glob.glob(_MSR.format(glob.escape(str(facts["release"])))))
    return {**facts, "msr_module": msr_module or (found[0] if found else None)}


def _release(path: str) -> str | None:
    """The release in a bzImage: Linux, Documentation/arch/x86/boot.rst, kernel_version."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head[0x202:0x206] != b"HdrS":
        return None
    start = 0x200 + int(struct.unpack_from("<H", head, 0x20E)[0])
    words = head[start : start + 256].partition(b"\0")[0].decode("ascii", "replace").split()
    return words[0] if words and "/" not in words[0] else None


def regular(path: str, limit: int = 1 << 30, tail: int = 0) -> Json:
    """Size and SHA-256 of a regular file, and its last `tail` bytes; never blocks on a FIFO or device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes; wanted at most {limit}")
        digest, size, last = hashlib.sha256(), 0, b""
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
            size += len(part)
            last = (last + part)[-tail:] if tail else b""
    facts: Json = {"size": size, "sha256": digest.hexdigest()}
    if tail:
        facts["tail_b64"] = base64.b64encode(last).decode("ascii")
    return facts


def _failure(error: OSError) -> Json:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return {"errno": name, "error": error.strerror or str(error)}
