# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's client, over a real sshd: requests, replies, files."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import AgentError, AgentRemoteError, DeadlineExceeded
from pytest_seves.host.agentzip import agent_zip
from pytest_seves.host.client import AgentClient, open_client

Sshd = Any


@pytest.fixture
def client(sshd: Sshd) -> Iterator[AgentClient]:
    """A running agent."""
    with open_client(sshd.host()) as client:
        yield client


def test_unknown_operation(client: AgentClient) -> None:
    """The agent's refusal arrives as an error with the remote kind."""
    with pytest.raises(AgentRemoteError, match="unknown operation 'nonsense'") as caught:
        client.call("nonsense")
    assert caught.value.kind == "ValueError"


def test_missing_file(client: AgentClient) -> None:
    """An errno arrives by its name, with the path."""
    with pytest.raises(AgentRemoteError) as caught:
        client.call("file.read", {"path": "/no/such/file"})
    assert caught.value.kind == "ENOENT"
    assert caught.value.evidence["remote"]["path"] == "/no/such/file"


def test_deadline_of_a_call(client: AgentClient) -> None:
    """A call ends at its deadline; the late answer disturbs no later call."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="exec"):
        client.call("exec", {"argv": ["sleep", "2"], "timeout_s": 10}, timeout_s=0.5)
    assert time.monotonic() - start < 1.5
    result = client.call("exec", {"argv": ["sleep", "2"], "timeout_s": 10})
    assert result["status"] == 0


def test_deadline_on_the_host(client: AgentClient) -> None:
    """A command is killed at its own deadline, with what it started."""
    start = time.monotonic()
    result = client.call("exec", {"argv": ["sh", "-c", "echo early; sleep 60 & wait"], "timeout_s": 0.5})
    assert time.monotonic() - start < 3
    assert (result["signal"], result["timed_out"]) == (9, True)
    assert base64.b64decode(result["stdout"]) == b"early\n"


def test_calls_after_close(client: AgentClient) -> None:
    """A closed client says so; closing again is harmless."""
    client.close()
    client.close()
    with pytest.raises(AgentError, match="closed"):
        client.call("file.read", {"path": "/proc/version"})


def test_use_in_a_forked_child(client: AgentClient) -> None:
    """A forked child cannot use the client, and cannot break it."""
    child = os.fork()
    if child == 0:
        try:
            client.call("facts")
        except AgentError:
            client.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.call("exec", {"argv": ["true"], "timeout_s": 10})["status"] == 0


def test_too_large_a_request(client: AgentClient) -> None:
    """A request above the frame limit is refused here, and nothing else suffers."""
    with pytest.raises(AgentError, match="too large"):
        client.call("file.put", {"name": "x", "data_b64": "A" * (64 << 20), "sha256": ""})
    assert client.call("exec", {"argv": ["true"], "timeout_s": 10})["status"] == 0


def test_hello(client: AgentClient) -> None:
    """The greeting carries the version of Python and of the agent."""
    assert client.hello["agent"] == agent_zip().sha256
    assert client.hello["python"].split(".")[0] == "3"
    assert client.hello["pid"] > 1


def test_exec(client: AgentClient) -> None:
    """Status and both streams come back; there is no shell, and stdin is empty."""
    code = "import os, sys; print(sys.argv[1], sys.stdin.read(), os.environ['EXTRA']); sys.exit('oh')"
    argv = [sys.executable, "-c", code, "$HOME"]
    result = client.call("exec", {"argv": argv, "env": {"EXTRA": "e"}, "timeout_s": 10})
    assert result["status"] == 1
    assert base64.b64decode(result["stdout"]) == b"$HOME  e\n"
    assert base64.b64decode(result["stderr"]) == b"oh\n"


def test_big_output_on_both_streams(client: AgentClient) -> None:
    """Megabytes on stdout and stderr neither block nor get lost within the limit, nor grow beyond it."""
    code = "import sys\nfor _ in range(48):\n sys.stdout.write('o' * 65536); sys.stderr.write('e' * 65536)"
    argv = [sys.executable, "-c", code]
    whole = client.call("exec", {"argv": argv, "timeout_s": 20, "limit": 4 << 20})
    assert base64.b64decode(whole["stdout"]) == b"o" * (3 << 20)
    assert base64.b64decode(whole["stderr"]) == b"e" * (3 << 20)
    assert whole["truncated"] is False
    part = client.call("exec", {"argv": argv, "timeout_s": 20, "limit": 1 << 20})
    assert base64.b64decode(part["stdout"]) == b"o" * (1 << 20)
    assert part["truncated"] is True


def test_files(client: AgentClient) -> None:
    """A file goes to a private directory and comes back in pieces."""
    data = os.urandom(5 << 20)
    sent = {"name": "ovmf.fd", "data_b64": base64.b64encode(data).decode()}
    path = client.call("file.put", {**sent, "sha256": hashlib.sha256(data).hexdigest()})["path"]
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    pieces = []
    for offset in range(0, len(data), 2 << 20):
        result = client.call("file.read", {"path": path, "offset": offset, "length": 2 << 20})
        assert result["size"] == len(data)
        pieces.append(base64.b64decode(result["data_b64"]))
    assert b"".join(pieces) == data
    client.close()
    assert not os.path.exists(os.path.dirname(path))


def test_many_calls_from_several_threads(client: AgentClient) -> None:
    """A thousand calls of four threads each get their own answer."""
    wrong: list[str] = []

    def work(thread: int) -> None:
        for n in range(250):
            try:
                client.call("file.read", {"path": f"/no/{thread}/{n}"})
            except AgentRemoteError as error:
                if error.evidence["remote"]["path"] != f"/no/{thread}/{n}":
                    wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_slow_call_delays_no_other(client: AgentClient) -> None:
    """Answers come as they are ready."""
    slow = threading.Thread(target=client.call, args=("exec", {"argv": ["sleep", "3"], "timeout_s": 10}))
    slow.start()
    start = time.monotonic()
    for _ in range(20):
        client.call("file.read", {"path": "/proc/version"})
    assert time.monotonic() - start < 2
    slow.join()


def test_one_connection_for_all_agents_of_a_host(sshd: Sshd) -> None:
    """Two clients share a connection, which ends with the last of them."""
    first, second = open_client(sshd.host()), open_client(sshd.host())
    assert len(sshd.connections()) == 1
    first.close()
    assert second.call("exec", {"argv": ["true"], "timeout_s": 10})["status"] == 0
    (session,) = sshd.connections()
    second.close()
    gone = subprocess.run(["timeout", "10", "tail", f"--pid={session}", "-f", "/dev/null"], check=False)
    assert gone.returncode == 0


def test_importing_the_client_leaves_paramiko_alone() -> None:
    """The slow import is paid for when a host is used."""
    code = "import sys, pytest_seves.host.client; sys.exit('paramiko' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_program_is_the_same_every_time() -> None:
    """Two processes, in two time zones, build the same bytes."""
    code = "from pytest_seves.host.agentzip import agent_zip; print(agent_zip().sha256)"
    command = [sys.executable, "-c", code]
    built = {
        subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "TZ": zone}).stdout
        for zone in ("UTC", "Asia/Tokyo")
    }
    assert len(built) == 1
