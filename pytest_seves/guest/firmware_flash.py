# SPDX-License-Identifier: GPL-2.0-or-later
"""The two flash chips of a guest: the lab file's firmware, and the variables that are made for it.

With ``-bios`` OVMF emulates its variables in memory that nobody wrote before, and an encrypted guest reads
noise there. Distributions ship code and variables as two files, as one, or as both: one file begins with the
volume of variables.

Source: UEFI PI 1.7, volume 3, section 3.2.1 (EFI_FIRMWARE_VOLUME_HEADER); edk2 OvmfPkg/OvmfPkg.fdf.inc.
"""

from __future__ import annotations

import base64
import re
import struct
import uuid
from typing import TYPE_CHECKING

from pytest_seves.errors import AgentRemoteError, Unsupported

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

_HEADER = struct.Struct("<16x16sQ4s")  # zero vector, file system's GUID, length, signature
_NV_DATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")  # gEfiSystemNvDataFvGuid
_SIGNATURE = b"_FVH"
_CODE = re.compile(r"(?i)code(?!.*code)")


def variables_in(image: bytes) -> int:
    """Bytes at the beginning of an image that hold variables, by its head; 0 for an image of code alone."""
    if len(image) < _HEADER.size:
        return 0
    guid, length, signature = _HEADER.unpack_from(image)
    return int(length) if signature == _SIGNATURE and uuid.UUID(bytes_le=guid) == _NV_DATA else 0


def variables_path(code: str) -> str | None:
    """The file of variables beside one of code, by its name: OVMF_CODE_4M.fd has OVMF_VARS_4M.fd."""
    folder, slash, name = code.rpartition("/")
    renamed = _CODE.sub(lambda found: "VARS" if found[0].isupper() else "vars", name)
    return f"{folder}{slash}{renamed}" if renamed != name else None


def host_flash(target: Target) -> tuple[bytes | None, bytes]:
    """Code and variables for the firmware of the lab file; no code where that file is code and nothing else.

    :raise Unsupported: no variables are with it; the message says where they were looked for.
    """
    path = target.facts.firmware.path or ""
    size = variables_in(_read(target, path, _HEADER.size))
    if size:
        image = _read(target, path)
        return image[size:], image[:size]
    beside = variables_path(path)
    if beside is None:
        raise Unsupported(f"this firmware has no variables for flash: none in {path}, nor a name for theirs")
    return None, _read(target, beside)


def _read(target: Target, path: str, length: int | None = None) -> bytes:
    asked = {"path": path} if length is None else {"path": path, "length": length}
    try:
        told = target.client.call("file.read", asked)
    except AgentRemoteError as error:
        raise Unsupported(f"this firmware has no variables for flash: {path}: {error.kind}") from error
    return base64.b64decode(told["data_b64"])
