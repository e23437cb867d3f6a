# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of Linux guests, and the program in it."""

from __future__ import annotations

import gzip
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import RigError, Unsupported
from pytest_seves.guest.linux import build
from pytest_seves.guest.linux.cpio import Entry, archive, character_device, directory, program
from pytest_seves.guest.linux.initramfs import probe_initramfs

needs_gcc = pytest.mark.skipif(shutil.which(build.COMPILER) is None, reason=f"no {build.COMPILER} on PATH")


def unpacked(raw: bytes) -> Iterator[Entry]:
    """Entries of an archive, read as Documentation/driver-api/early-userspace/buffer-format.rst says."""
    at = 0
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, device, length, check = fields[1], fields[6], (fields[9], fields[10]), *fields[11:]
        assert check == 0
        name = raw[at + 110 : at + 110 + length]
        at += -(-(110 + length) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert set(raw[at:]) <= {0}
            return
        assert name.endswith(b"\0")
        yield Entry(name[:-1].decode(), mode, raw[at : at + size], device)
        at += -(-size // 4) * 4


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda name: not name.startswith("/") and name != "TRAILER!!!"
)
_NUMBERS = st.integers(0, 0xFFFF)
_ENTRIES = st.one_of(
    st.builds(program, _NAMES, st.binary(max_size=100)),
    st.builds(directory, _NAMES),
    st.builds(character_device, _NAMES, _NUMBERS, _NUMBERS),
)


@given(entries=st.lists(_ENTRIES, max_size=8))
def test_what_goes_in_comes_out(entries: list[Entry]) -> None:
    """An archive holds its entries as they were given, in order, and nothing of this machine."""
    raw = archive(entries)
    assert list(unpacked(raw)) == entries
    assert len(raw) % 512 == 0
    assert raw == archive(entries)


@pytest.mark.parametrize(
    ("name", "mode", "data"),
    [
        ("", stat.S_IFREG, b""),
        ("/init", stat.S_IFREG, b""),
        ("a\0b", stat.S_IFREG, b""),
        ("TRAILER!!!", stat.S_IFREG, b""),
        ("dev", stat.S_IFDIR, b"x"),
    ],
)
def test_an_entry_that_no_kernel_would_unpack_is_refused(name: str, mode: int, data: bytes) -> None:
    """A name that is a path of the host, or ends the archive; a directory with content."""
    with pytest.raises(ValueError, match="cpio: "):
        Entry(name, mode, data)


def test_the_initramfs_holds_init_and_its_console() -> None:
    """The program as /init, a console for it, and the driver where there is one."""
    entries = {entry.name: entry for entry in unpacked(gzip.decompress(probe_initramfs(b"driver")))}
    assert list(entries) == ["dev", "dev/console", "init", "msr.ko"]
    assert (entries["init"].data, entries["init"].mode) == (build.BINARY.read_bytes(), stat.S_IFREG | 0o755)
    assert entries["dev/console"] == character_device("dev/console", 5, 1)
    assert entries["msr.ko"].data == b"driver"
    assert "msr.ko" not in [entry.name for entry in unpacked(gzip.decompress(probe_initramfs()))]
    assert probe_initramfs() == probe_initramfs()


def test_the_program_needs_nothing() -> None:
    """A static ELF of x86-64 without an interpreter, of a few KiB."""
    raw = build.BINARY.read_bytes()
    kind, machine = struct.unpack_from("<HH", raw, 16)
    assert (raw[:5], kind, machine) == (b"\x7fELF\2", 2, 62)  # 64 bit, ET_EXEC, EM_X86_64
    start, count = struct.unpack_from("<Q", raw, 32)[0], struct.unpack_from("<H", raw, 56)[0]
    types = {struct.unpack_from("<I", raw, start + 56 * n)[0] for n in range(count)}
    assert not types & {2, 3}  # PT_DYNAMIC, PT_INTERP
    assert len(raw) < 8192


@needs_gcc
def test_a_source_that_warns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows what the compiler said."""
    (tmp_path / "init.c").write_text("int unused(void) { int x; return 0; }\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "init.c")
    with pytest.raises(RigError, match=r"exit status 1: init.c: .*unused variable|init.c:1:"):
        build.build()


@needs_gcc
def test_another_release_of_the_compiler_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give other bytes, which say nothing about the source."""
    monkeypatch.setattr(build, "VERSION", "12.9.9")
    with pytest.raises(Unsupported, match=r"wanted GCC 12.9.9, got 12\."):
        build.build()
