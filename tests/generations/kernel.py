# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's kernel for virtual machines, unpacked beside the second QEMU and in the same way."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.generations import fetch

_NEWEST = "linux-image-cloud-amd64"  # depends on the package that has the kernel


@dataclass(frozen=True)
class Kernel:
    """A kernel and its msr driver."""

    image: Path
    msr_module: Path


def fetch_kernel(cache: Path) -> Kernel:
    """The kernel below `cache`; downloaded when it is not there yet.

    :raises fetch.UnavailableError: no such package, no network, no apt, or a bad signature.
    """
    try:
        suite = fetch.backports()
        tree = cache / f"kernel-{suite}"
        cache.mkdir(parents=True, exist_ok=True)
        with fetch._locked(cache / f"kernel-{suite}.lock"):
            if not tree.is_dir():
                _unpack_into(tree, suite)
    except OSError as error:
        raise fetch.UnavailableError(f"cannot make a kernel below {cache}: {error}") from error
    (image,) = tree.glob("boot/vmlinuz-*")
    (module,) = tree.glob("lib/modules/*/kernel/arch/x86/kernel/msr.ko*")
    return Kernel(image, module)


def _unpack_into(tree: Path, suite: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pytest-seves-apt-") as private,
        tempfile.TemporaryDirectory(prefix=".kernel-", dir=tree.parent) as scratch,
    ):
        apt, unpacked = Path(private), Path(scratch) / "tree"
        apt.chmod(0o755)
        config = fetch._configure(apt, suite)
        fetch._run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], config)
        told = fetch._run(["apt-cache", "depends", _NEWEST], config)
        names = [line.split()[1] for line in told.splitlines() if "Depends: linux-image-" in line]
        if len(names) != 1:
            raise fetch.UnavailableError(f"apt-cache depends {_NEWEST}: wanted one kernel, got {names}")
        fetch._run(["env", f"--chdir={apt}", "apt-get", "-q", "download", names[0]], config)
        unpacked.mkdir()
        (package,) = apt.glob("*.deb")
        fetch._run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        if not list(unpacked.glob("boot/vmlinuz-*")):
            raise fetch.UnavailableError(f"{package.name} holds no boot/vmlinuz-*")
        unpacked.rename(tree)
