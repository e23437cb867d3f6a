# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware images and kernels on the host: read without blocking, and described."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from pathlib import Path

import pytest

from pytest_seves.agent import images


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "absent", "huge"])
def test_a_firmware_that_is_no_plain_file(tmp_path: Path, kind: str) -> None:
    """A FIFO does not block, a directory does not crash, a disk image is not hashed for minutes."""
    path = tmp_path / "x.fd"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
    got = images.firmware(str(path))
    assert got["errno"] in {"EINVAL", "EISDIR", "ENOENT", "EFBIG"}
    assert got["error"]


@pytest.mark.parametrize("size", [0, 1, images.FIRMWARE_TAIL, 3 << 20])
def test_a_firmware_image(tmp_path: Path, size: int) -> None:
    """Size, hash and the last 8 KiB; a short file gives what it has."""
    raw = os.urandom(size)
    (tmp_path / "x.fd").write_bytes(raw)
    got = images.firmware(str(tmp_path / "x.fd"))
    assert (got["size"], got["sha256"]) == (size, hashlib.sha256(raw).hexdigest())
    assert base64.b64decode(got["tail_b64"]) == raw[-images.FIRMWARE_TAIL :]


def bzimage(version: bytes, at: int = 0x3000) -> bytes:
    """The head of a kernel as Documentation/arch/x86/boot.rst describes it, and nothing behind it."""
    head = bytearray(at + 0x200)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, at)
    return bytes(head) + version


@pytest.mark.parametrize(
    ("raw", "release"),
    [
        (bzimage(b"6.1.0-1-amd64 (builder@host) #1 SMP\0rest"), "6.1.0-1-amd64"),
        (bzimage(b"6.1.0-1-amd64"), "6.1.0-1-amd64"),
        (bzimage(b""), None),
        (bzimage(b"../../x \0"), None),
        (bzimage(b"6.1", at=0xFF00), None),
        (b"", None),
        (b"\x7fELF" + bytes(1 << 16), None),
    ],
    ids=["whole", "cut", "empty", "a path", "too far", "no bytes", "ELF"],
)
def test_the_release_of_a_kernel(tmp_path: Path, raw: bytes, release: str | None) -> None:
    """A bzImage tells its release; whatever else the file is, nothing is made up."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(raw)
    got = images.kernel(str(path))
    assert (got["size"], got["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert (got["release"], got["msr_module"]) == (release, None)


def test_a_declared_driver_goes_first(tmp_path: Path) -> None:
    """The msr driver that the lab file names is taken as it is."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(b"6.1 "))
    assert images.kernel(str(path), "/x/msr.ko")["msr_module"] == "/x/msr.ko"


def test_no_kernel_is_none() -> None:
    """Where a host is to have none, none is looked for."""
    assert images.kernel("") == {"path": None, "error": "no kernel named"}


def test_without_a_name_it_is_the_host_s_own_kernel() -> None:
    """No path: where distributions put the running kernel, readable or not."""
    got = images.kernel(None)
    assert got["path"] == f"/boot/vmlinuz-{os.uname().release}"
    assert "sha256" in got or got["errno"] in ("ENOENT", "EACCES")
