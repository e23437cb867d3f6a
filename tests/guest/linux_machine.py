# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's kernel with our init, under an accelerator that knows nothing of SEV."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from pathlib import Path

import pytest

from pytest_seves.guest.linux.initramfs import probe_initramfs
from tests.generations import fetch
from tests.generations.kernel import Kernel, fetch_kernel

DEADLINE_S = 240  # under TCG, on a machine that has other things to do; OVMF takes most of it
OVMF = "/usr/share/ovmf/OVMF.fd"


def distribution_kernel() -> Kernel:
    """The kernel, or a skip that says why there is none."""
    try:
        return fetch_kernel(fetch.cache_directory())
    except fetch.UnavailableError as error:
        pytest.skip(f"no distribution kernel: {error}")


def boot(
    folder: Path,
    kernel: Kernel,
    *arguments: str,
    append: str = "",
    msr: bool = True,
    accelerator: str = "tcg",
    vcpus: int = 1,
    until: bytes = b"",
    times: int = 1,
) -> bytes:
    """Boot it and return its console, once QEMU has ended, or `until` was said so many times.

    :param arguments: of QEMU.
    :param msr: whether the initramfs has the msr driver.
    """
    initrd = folder / "initrd"
    initrd.write_bytes(probe_initramfs(kernel.msr_module.read_bytes() if msr else None))
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-m", "256M"]
    argv += ["-accel", accelerator, "-smp", str(vcpus), "-serial", "stdio", "-kernel", str(kernel.image)]
    argv += ["-initrd", str(initrd), "-append", f"console=ttyS0 {append}", *arguments]
    with (folder / "stderr").open("w+") as said:
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as machine:
            try:
                console = _console(machine, until, times)
            finally:
                machine.kill()
        said.seek(0)
        assert console is not None, f"not done after {DEADLINE_S} s; stderr: {said.read()}"
    return console


def _console(machine: subprocess.Popen[bytes], until: bytes, times: int) -> bytes | None:
    assert machine.stdout is not None
    console = b""
    end = time.monotonic() + DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(machine.stdout, selectors.EVENT_READ)
        while not until or console.count(until) < times or not console.endswith(b"\n"):
            if not selector.select(max(0, end - time.monotonic())):
                return None
            chunk = os.read(machine.stdout.fileno(), 1 << 16)
            if not chunk:
                return console
            console += chunk
    return console
