# SPDX-License-Identifier: GPL-2.0-or-later
"""Files on the host: written whole or not at all, read in bounded pieces."""

from __future__ import annotations

import base64
import hashlib
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent import files

LocalAgent = Any


def request(name: str, data: bytes) -> dict[str, Any]:
    """The arguments of file.put."""
    encoded = base64.b64encode(data).decode()
    return {"name": name, "data_b64": encoded, "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", ".lock", "a\nb", "x" * 129, "ä"])
def test_names_that_are_refused(agent: LocalAgent, name: str) -> None:
    """Nothing can be written outside the private directory, nor over the agent's own file."""
    error = agent.call("file.put", **request(name, b"x"))["error"]
    assert error["kind"] == "ValueError"
    assert repr(name) in error["message"]


def test_damaged_data(agent: LocalAgent) -> None:
    """Data of another digest, or no base64 at all, are not written."""
    wrong = {**request("x", b"good"), "data_b64": base64.b64encode(b"bad").decode()}
    assert "wanted sha256" in agent.call("file.put", **wrong)["error"]["message"]
    assert "not base64" in agent.call("file.put", **{**wrong, "data_b64": "?"})["error"]["message"]
    assert sorted(path.name for path in next(agent.temp.iterdir()).iterdir()) == [".lock"]


def test_a_file_in_pieces(agent: LocalAgent) -> None:
    """Pieces make one file, which is there with the last one; the digest is that of the whole."""
    whole = os.urandom(300)
    args = {"name": "x", "sha256": hashlib.sha256(whole).hexdigest()}
    pieces = [base64.b64encode(whole[at : at + 100]).decode() for at in (0, 100, 200)]
    agent.call("file.put", **args, data_b64=pieces[0], last=False)
    path = Path(agent.call("file.put", **args, data_b64=pieces[1], offset=100, last=False)["ok"]["path"])
    assert not path.exists()
    agent.call("file.put", **args, data_b64=pieces[2], offset=200)
    assert path.read_bytes() == whole
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "x"]


def test_a_piece_out_of_order(agent: LocalAgent) -> None:
    """A piece that does not follow the one before ends the file; nothing partial stays."""
    agent.call("file.put", **request("x", b"12"), last=False)
    error = agent.call("file.put", **request("x", b"56"), offset=4)["error"]
    assert error["message"].endswith("wanted the piece at 2, got the one at 4")
    error = agent.call("file.put", **request("x", b"34"), offset=2)["error"]
    assert error["message"].endswith("wanted the piece at 0, got the one at 2")
    assert [entry.name for entry in next(agent.temp.iterdir()).iterdir()] == [".lock"]


def test_no_space(start_agent: Callable[..., LocalAgent]) -> None:
    """A full file system is called ENOSPC, with path and free bytes; nothing partial stays."""
    unshare = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-r", "-m")
    mount = 'mount -t tmpfs -o size=256k tmpfs "$TMPDIR" && exec "$@"'
    if subprocess.run([*unshare, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces for this user")
    agent = start_agent((*unshare, "sh", "-c", mount, "sh"))
    error = agent.call("file.put", **request("big", os.urandom(1 << 20)))["error"]
    assert error["kind"] == "ENOSPC"
    assert error["evidence"]["path"].endswith("/big")
    assert error["evidence"]["size"] == 1 << 20
    assert 0 < error["evidence"]["free"] <= 256 << 10
    path = agent.call("file.put", **request("small", b"fits"))["ok"]["path"]
    listed = agent.call("exec", argv=["ls", os.path.dirname(path)], timeout_s=10)["ok"]
    assert base64.b64decode(listed["stdout"]) == b"small\n"


def test_size_limit(start_agent: Callable[..., LocalAgent]) -> None:
    """So does a resource limit, under its own name."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    agent = start_agent(preexec_fn=limit)
    error = agent.call("file.put", **request("big", bytes(1 << 20)))["error"]
    assert error["kind"] == "EFBIG"
    assert [path.name for path in next(agent.temp.iterdir()).iterdir()] == [".lock"]


def test_replacing_a_file(agent: LocalAgent) -> None:
    """The second version of a file replaces the first."""
    agent.call("file.put", **request("x", b"one"))
    path = Path(agent.call("file.put", **request("x", b"two"))["ok"]["path"])
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o077 == 0


def test_leftovers_of_a_killed_agent(start_agent: Callable[..., LocalAgent]) -> None:
    """A later agent removes what a killed one left, and nothing of one that lives."""
    first, second = start_agent(), start_agent()
    (kept,) = (Path(second.call("file.put", **request("x", b""))["ok"]["path"]).parent,)
    lost = Path(first.call("file.put", **request("x", b""))["ok"]["path"]).parent
    first.process.kill()
    first.process.wait()
    start_agent().call("file.put", **request("x", b""))
    assert not lost.exists()
    assert kept.exists()


@pytest.mark.parametrize(
    "args",
    [{"offset": -1}, {"length": -1}, {"length": files.MAX_READ + 1}, {"unknown": 1}],
    ids=["offset", "length", "too-long", "unknown"],
)
def test_reads_that_are_refused(agent: LocalAgent, args: dict[str, Any]) -> None:
    """Numbers out of range and unknown arguments are errors."""
    assert agent.call("file.read", path="/proc/version", **args)["error"]["kind"] in (
        "ValueError",
        "TypeError",
    )


def test_reading_a_fifo_does_not_block(agent: LocalAgent, tmp_path: Path) -> None:
    """A FIFO that nobody writes is empty."""
    os.mkfifo(tmp_path / "fifo")
    assert agent.call("file.read", path=str(tmp_path / "fifo"))["ok"]["data_b64"] == ""


def test_reading_a_directory(agent: LocalAgent, tmp_path: Path) -> None:
    """A directory is no file."""
    assert agent.call("file.read", path=str(tmp_path))["error"]["kind"] == "EISDIR"


def test_reading_what_has_no_size(agent: LocalAgent) -> None:
    """A file of /proc is read to its end, whatever size it claims."""
    result = agent.call("file.read", path="/proc/self/status")["ok"]
    assert b"Name:" in base64.b64decode(result["data_b64"])


def test_the_directory_is_removed(agent: LocalAgent) -> None:
    """At the end nothing stays on the disk."""
    agent.call("file.put", **request("x", b"x"))
    assert list(agent.temp.iterdir())
    assert agent.end() == (0, "")
    assert list(agent.temp.iterdir()) == []
