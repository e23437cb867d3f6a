# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a Linux guest that reports: our init, a console, and the msr driver where there is one."""

from __future__ import annotations

import gzip

from .build import BINARY
from .cpio import archive, character_device, directory, program

#: What the kernel opens for its first process: major and minor of /dev/console.
_CONSOLE = (5, 1)


def probe_initramfs(msr_module: bytes | None = None) -> bytes:
    """The initramfs, compressed with gzip, which every kernel with an initramfs knows.

    :param msr_module: ``msr.ko`` of that kernel, as it is or compressed in a way that this kernel knows; None
        where it is built in or not to be had. Without a driver SEV_STATUS cannot be read: RDMSR is for the
        kernel alone.
    """
    entries = [
        directory("dev"),
        character_device("dev/console", *_CONSOLE),
        program("init", BINARY.read_bytes()),
    ]
    if msr_module is not None:
        entries.append(program("msr.ko", msr_module))
    return gzip.compress(archive(entries), mtime=0)
