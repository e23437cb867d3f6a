# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and calls outside /dev/kvm and /dev/sev through which a host tells what it is."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from .memory import Refusal

if TYPE_CHECKING:
    from .profiles import Profile

CPUID_DEVICE = "seves-cpuid"
_MODULE_DIRECTORIES = (b"/sys/module/kvm_amd/", b"/sys/module/kvm/", b"/sys/module/ccp/")
#: What a host without DMI, and a kernel without notes, does not have; the machine's own are not the model's.
_ABSENT = (b"/sys/class/dmi/", b"/sys/kernel/notes")
_UTS_FIELD = 65


_BOOT_ID = b"/proc/sys/kernel/random/boot_id"
_KMSG = b"/dev/kmsg"
_INTERESTING = (b"/sys/", b"/dev/cpu/", b"/dev/kvm", b"/dev/sev", _BOOT_ID, _KMSG)
#: What a host has of its own and a test may change while it runs: path on it -> file in its directory.
OWN = {_BOOT_ID: "boot_id", _KMSG: "kmsg"}


def may_be_modelled(path: bytes) -> bool:
    """False for the paths, nearly all, that are certainly the machine's own."""
    return path.startswith(_INTERESTING)


class ServedFiles:
    """Contents by path, for any process of a session.

    :param usage: (sev, sev_es) ASIDs in use now.
    :param directory: the host's own, with the files of :data:`OWN`.
    """

    def __init__(self, profile: Profile, usage: Callable[[], tuple[int, int]], directory: str) -> None:
        self._profile = profile
        self._directory = directory
        self._usage = usage
        self._contents = self._fixed()

    def open(self, path: bytes, flags: int) -> int | None:
        """A descriptor of ours to give away (the caller closes it), None for a path that is not modelled.

        :raise Refusal: the host has no such file, or does not let one write it.
        """
        content: str | None
        if path == b"/sys/fs/cgroup/misc.current":
            content = "sev {}\nsev_es {}\n".format(*self._usage())
        elif path in OWN:
            with open(f"{self._directory}/{OWN[path]}", encoding="utf-8") as file:
                content = file.read()
        else:
            content = self._contents.get(path)
        if content is None:
            if path.startswith(_MODULE_DIRECTORIES + _ABSENT):
                raise Refusal(errno.ENOENT)
            return None
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refusal(errno.EACCES)
        return _read_only(CPUID_DEVICE if path == b"/dev/cpu/0/cpuid" else "seves-file", content.encode())

    def cpuid(self, offset: int) -> bytes:
        """16 bytes of /dev/cpu/0/cpuid: the leaf in the low half of the offset, the subleaf in the high."""
        return struct.pack("<4I", *self._profile.host_leaf(offset & 0xFFFFFFFF, offset >> 32))

    def uname(self) -> bytes:
        """struct new_utsname: this machine's name and architecture, the profile's kernel."""
        real = os.uname()
        values = (
            real.sysname,
            real.nodename,
            self._profile.release,
            self._profile.version,
            real.machine,
            "(none)",
        )
        return b"".join(value.encode()[: _UTS_FIELD - 1].ljust(_UTS_FIELD, b"\0") for value in values)

    def _fixed(self) -> dict[bytes, str]:
        profile = self._profile
        states = {
            "sev": "NY"[profile.sev_usable],
            "sev_es": "NY"[profile.es_usable],
            "debug_swap": "NY"[bool(profile.vmsa_features)],
        }
        modules = {
            "kvm_amd": {
                **profile.kvm_amd,
                **{name: states[name] for name in states if name in profile.kvm_amd},
            },
            "kvm": profile.kvm,
            "ccp": profile.ccp,
        }
        files = {
            f"/sys/module/{module}/parameters/{name}": f"{value}\n"
            for module, values in modules.items()
            for name, value in values.items()
        }
        capacity = f"sev {profile.sev_asids}\n" if profile.sev_usable else ""
        capacity += f"sev_es {profile.es_asids}\n" if profile.es_usable else ""
        files["/sys/fs/cgroup/misc.capacity"] = capacity
        files["/sys/devices/system/cpu/cpu0/microcode/version"] = f"{profile.microcode}\n"
        files["/dev/cpu/0/cpuid"] = ""
        return {path.encode(): text for path, text in files.items()}


def _read_only(name: str, content: bytes) -> int:
    writable = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(writable, content)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
