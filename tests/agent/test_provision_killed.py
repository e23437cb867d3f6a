# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a change is killed, what is on record takes it back."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent import changes, provision

DATA = b"new" * 1000
#: What touches the disk raises one of these audit events first.
EVENTS = {"open", "os.rename", "os.mkdir", "os.chmod", "os.chown", "os.remove", "os.rmdir", "os.symlink"}


def write(path: Path) -> dict[str, Any]:
    """The request that writes a file below two new directories, or over an old one."""
    data = base64.b64encode(DATA).decode()
    sha256 = hashlib.sha256(DATA).hexdigest()
    return {"do": "write", "path": str(path), "sha256": sha256, "data_b64": data, "offset": 0, "last": True}


def killed_at(count: int, request: dict[str, Any]) -> bool:
    """Do it in a child that kills itself before its access `count` to the disk; False: there were fewer."""
    pid = os.fork()
    if pid == 0:
        left = [count]

        def hook(event: str, args: tuple[Any, ...]) -> None:
            left[0] -= event in EVENTS
            if event in EVENTS and left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        os._exit("failed" in provision.perform(request))
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def take_back() -> None:
    """Undo everything on record, last first."""
    for change in reversed(changes.load(changes.folder())):
        assert provision.perform({"do": "undo", "number": change["number"]}) == {}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to change, and a record elsewhere."""
    monkeypatch.setattr(changes, "ROOTS", str(tmp_path / "record/provision"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "record"))
    host = tmp_path / "host"
    host.mkdir()
    (host / "old").write_text("old")
    (host / "old").chmod(0o640)
    (host / "link").symlink_to("old")
    return host


@pytest.mark.parametrize("name", ["a/b/new", "old", "link"])
def test_a_write_killed_anywhere(host: Path, name: str) -> None:
    """Before each access to the disk in turn; then the whole write; then the undoing, killed likewise."""
    before = changes.state(str(host))
    count, request = 1, write(host / name)
    while killed_at(count, request):
        take_back()
        assert changes.state(str(host)) == before
        count += 1
    assert (host / name).read_bytes() == DATA
    take_back()
    assert changes.state(str(host)) == before
    assert not Path(changes.folder()).exists()
    assert count > 10


@pytest.mark.parametrize("name", ["a/b/new", "old", "link"])
def test_a_revert_killed_anywhere(host: Path, name: str) -> None:
    """An undoing that was killed can be done again."""
    before = changes.state(str(host))
    count, killed = 1, True
    while killed:
        assert provision.perform(write(host / name)) == {}
        number = changes.load(changes.folder())[-1]["number"]
        killed = killed_at(count, {"do": "undo", "number": number})
        take_back()
        assert changes.state(str(host)) == before
        count += 1
    assert count > 5
