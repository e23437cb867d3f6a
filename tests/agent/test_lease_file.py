# SPDX-License-Identifier: GPL-2.0-or-later
"""The files by which agents know of each other: anybody can put one there."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.agent.lease_file import OwnFile, read_all

TENANT = {
    "run": "aaaa",
    "user": "alice",
    "machine": "desk",
    "pid": 1,
    "shared": False,
    "expiry_s": 30,
    "token": 7,
    "es_asids": 0,
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnFile]:
    """The file of an agent that lives."""
    file = OwnFile(str(tmp_path), TENANT)
    yield file
    file.close()


def test_a_living_agent(own: OwnFile, tmp_path: Path) -> None:
    """Everybody may read its file; it says who holds the host, and that he lives."""
    (entry,) = read_all(str(tmp_path))
    assert entry.record == own.record
    assert (entry.alive, entry.expired, entry.uid) == (True, False, os.getuid())
    assert stat.S_IMODE(os.stat(own.path).st_mode) == 0o644


def test_a_dead_agent(tmp_path: Path) -> None:
    """Its lock is gone with it; its token stays."""
    OwnFile(str(tmp_path), TENANT).close()
    (entry,) = read_all(str(tmp_path))
    assert (entry.alive, entry.expired, entry.token) == (False, False, 7)


def test_another_boot(own: OwnFile, tmp_path: Path) -> None:
    """After a reboot nothing of it counts, whatever a network file system says about the lock."""
    own.record["boot"] = "00000000-0000-0000-0000-000000000000"
    own.beat()
    (entry,) = read_all(str(tmp_path))
    assert entry.locked
    assert not entry.alive
    assert not entry.expired


def test_silence(own: OwnFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that lives and says nothing has expired; one beat and it has not. No wall clock is asked."""
    later = time.monotonic_ns() + 31 * 10**9
    monkeypatch.setattr(time, "monotonic_ns", lambda: later)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    (entry,) = read_all(str(tmp_path))
    assert entry.alive
    assert entry.expired
    own.beat()
    assert not read_all(str(tmp_path))[0].expired


def test_taken_away(own: OwnFile, tmp_path: Path) -> None:
    """An agent knows when its file is no longer the one that it made."""
    seen = [own.in_place]
    Path(own.path).rename(tmp_path / "elsewhere")
    seen.append(own.in_place)
    Path(own.path).touch()
    assert [*seen, own.in_place] == [True, False, False]


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    """Pipes, links, directories and other people's text are passed over, without waiting."""
    os.mkfifo(tmp_path / "pytest-seves.lease.pipe")
    (tmp_path / "pytest-seves.lease.link").symlink_to("/dev/zero")
    (tmp_path / "pytest-seves.lease.directory").mkdir()
    (tmp_path / "pytest-seves.lease.empty").touch()
    (tmp_path / "pytest-seves.lease.text").write_text("{")
    (tmp_path / "pytest-seves.lease.bytes").write_bytes(b"\xff" * 10000)
    (tmp_path / "pytest-seves.lease.deep").write_text("[" * 4096)
    assert read_all(str(tmp_path)) == []


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists), st.data())
def test_records_that_make_no_sense(tmp_path_factory: pytest.TempPathFactory, value: Any, data: Any) -> None:
    """One wrong value, and it is no record; what is one can be shown as it is."""
    directory = tmp_path_factory.mktemp("lease")
    file = OwnFile(str(directory), TENANT)
    record = {**file.record, data.draw(st.sampled_from(sorted(file.record))): value}
    file.close()
    Path(file.path).write_text(json.dumps(record))
    for entry in read_all(str(directory)):
        assert f"{entry.run}{entry.record['user']}{entry.record['machine']}".isprintable()
        assert entry.token < 1 << 62
        assert entry.silent_s < 1e12
