# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH transport against a real sshd."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DeadlineExceeded,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
)
from pytest_seves.host import ssh
from pytest_seves.host.inventory import Jump

Sshd = Any  # conftest's class; test files cannot import it


def fingerprint(public_key: Path) -> str:
    """What ssh-keygen says."""
    listed = subprocess.run(["ssh-keygen", "-lf", public_key], stdout=subprocess.PIPE, check=True)
    return listed.stdout.decode().split()[1]


def output(connection: ssh.Connection, command: str) -> bytes:
    """All that `command` prints."""
    process = connection.execute(command, 10)
    data = b""
    while part := process.recv():
        data += part
    process.close()
    return data


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    """A private key that nobody knows."""
    path = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture
def ssh_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """A running ssh-agent; call it to add a key."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # it listens now
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))

    def add(key: Path) -> None:
        subprocess.run(["ssh-add", "-q", key], check=True)

    yield add
    process.kill()
    process.communicate()


@pytest.fixture
def no_ssh_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An SSH_AUTH_SOCK that leads nowhere."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))


# Host keys


def test_unknown_host_key(sshd: Sshd, tmp_path: Path) -> None:
    """A host that nobody pinned is refused, with the fingerprint it presents and the file to add it to."""
    host = sshd.host(host_key=None, known_hosts=tmp_path / "known_hosts")
    with pytest.raises(HostKeyUnknown) as caught:
        ssh.connect(host)
    assert fingerprint(sshd.directory / "host_key.pub") in str(caught.value)
    assert str(tmp_path / "known_hosts") in str(caught.value)


def test_wrong_host_key(sshd: Sshd, other_key: Path) -> None:
    """A host with another key than the pinned one is refused, and both fingerprints are shown."""
    with pytest.raises(HostKeyChanged) as caught:
        ssh.connect(sshd.host(host_key=other_key.with_suffix(".pub").read_text()))
    assert fingerprint(sshd.directory / "host_key.pub") in str(caught.value)
    assert fingerprint(other_key.with_suffix(".pub")) in str(caught.value)


def test_changed_host_key(sshd: Sshd, other_key: Path, tmp_path: Path) -> None:
    """The same from a known_hosts file, which is named."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {other_key.with_suffix('.pub').read_text()}")
    with pytest.raises(HostKeyChanged, match="known_hosts"):
        ssh.connect(sshd.host(host_key=None, known_hosts=known_hosts))


def test_only_pinned_algorithms_are_negotiated(sshd: Sshd, tmp_path: Path) -> None:
    """With an ECDSA key pinned, a server that has none is refused: it cannot fall back to another type."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "k"], check=True)
    with pytest.raises(HostKeyChanged, match="ecdsa-sha2-nistp256"):
        ssh.connect(sshd.host(host_key=(tmp_path / "k.pub").read_text()))


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_the_pinned_type_is_asked_for(start_sshd: Callable[..., Sshd], tmp_path: Path, kind: str) -> None:
    """A server with several keys presents the one that is pinned, whatever it prefers."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", tmp_path / "second"], check=True)
    server = start_sshd(f"HostKey {tmp_path}/second")
    connection = ssh.connect(server.host(host_key=(tmp_path / "second.pub").read_text()))
    connection.close()


def test_known_hosts_file(sshd: Sshd, tmp_path: Path) -> None:
    """A hashed entry of the right key lets the connection through."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known_hosts], check=True)
    ssh.connect(sshd.host(host_key=None, known_hosts=known_hosts)).close()


# No connection


def test_refused_port(sshd: Sshd) -> None:
    """Nobody listens: at once, with address and port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(HostUnreachable, match=f"127.0.0.1 port {port}: Connection refused"):
            ssh.connect(sshd.host(port=port))


def test_unknown_name(sshd: Sshd) -> None:
    """A name that does not resolve is called that."""
    with pytest.raises(HostUnreachable, match="does not resolve"):
        ssh.connect(sshd.host(address="no-such-host.invalid"))


def test_silent_server(sshd: Sshd) -> None:
    """Something accepts and never says a word: the deadline holds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        with pytest.raises(HostUnreachable, match="no answer within 1 s"):
            ssh.connect(sshd.host(port=listener.getsockname()[1], connect_timeout_s=1.0))
    assert time.monotonic() - start < 3


def test_full_backlog(sshd: Sshd) -> None:
    """A peer that never completes the TCP handshake, as behind a dropping firewall: the deadline holds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        start = time.monotonic()
        with pytest.raises(HostUnreachable, match="no answer within 1 s"):
            ssh.connect(sshd.host(port=listener.getsockname()[1], connect_timeout_s=1.0))
        for filler in fillers:
            filler.close()
    assert time.monotonic() - start < 3


def test_not_an_ssh_server(sshd: Sshd) -> None:
    """Something else answers on the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"220 mail.example ESMTP\r\n" * 200)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostUnreachable, match="Is it an SSH server"):
            ssh.connect(sshd.host(port=listener.getsockname()[1]))
        thread.join()


# Authentication


def test_key_that_is_not_authorized(sshd: Sshd, other_key: Path) -> None:
    """The message names user and key."""
    with pytest.raises(AuthenticationFailed) as caught:
        ssh.connect(sshd.host(identity=other_key))
    assert str(other_key) in str(caught.value)
    assert repr(sshd.host().user) in str(caught.value)


def test_missing_identity(sshd: Sshd, tmp_path: Path) -> None:
    """An identity file that is not there is named."""
    with pytest.raises(AuthenticationFailed, match=r"nothere.*No such file"):
        ssh.connect(sshd.host(identity=tmp_path / "nothere"))


def test_identity_that_is_no_key(sshd: Sshd) -> None:
    """The public half given for the private one is no key."""
    with pytest.raises(AuthenticationFailed, match="cannot be used"):
        ssh.connect(sshd.host(identity=sshd.directory / "identity.pub"))


@pytest.mark.usefixtures("no_ssh_agent")
def test_passphrase_without_an_agent(sshd: Sshd) -> None:
    """A passphrase is never asked for; the message says so."""
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", sshd.identity]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(AuthenticationFailed, match=r"has a passphrase.*no SSH agent") as caught:
        ssh.connect(sshd.host())
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("no_ssh_agent")
def test_no_identity_and_no_agent(sshd: Sshd) -> None:
    """Without any key the message says what to do."""
    with pytest.raises(AuthenticationFailed, match=r"no key at all.*ssh-add"):
        ssh.connect(sshd.host(identity=None))


def test_passphrase_with_an_agent(sshd: Sshd, ssh_agent: Callable[[Path], None], other_key: Path) -> None:
    """The agent's copy of the identity is used, its other keys are not."""
    ssh_agent(other_key)
    ssh_agent(sshd.identity)
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", sshd.identity]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ssh.connect(sshd.host()).close()
    assert "Failed publickey" not in (sshd.directory / "log").read_text()


def test_agent_alone(sshd: Sshd, ssh_agent: Callable[[Path], None], other_key: Path) -> None:
    """Without an identity every key of the agent is tried."""
    ssh_agent(other_key)
    ssh_agent(sshd.identity)
    ssh.connect(sshd.host(identity=None)).close()


# Through a jump host


@pytest.fixture
def jumped(start_sshd: Callable[..., Sshd]) -> tuple[Sshd, Sshd]:
    """A jump host and a target."""
    return start_sshd(), start_sshd()


def jump_to(first: Sshd, **changes: Any) -> Jump:
    """The inventory's entry of a jump host."""
    jump = Jump("127.0.0.1", first.port, first.host().user, first.host_key, first.identity)
    return replace(jump, **changes)


def test_jump_host_with_another_key(jumped: tuple[Sshd, Sshd]) -> None:
    """The jump host's key is checked against its own pin."""
    first, second = jumped
    with pytest.raises(HostKeyChanged, match="jump host"):
        ssh.connect(second.host(jump=jump_to(first, host_key=second.host_key)))


def test_target_key_is_checked_through_the_jump_host(jumped: tuple[Sshd, Sshd]) -> None:
    """A jump host vouches for nothing."""
    first, second = jumped
    with pytest.raises(HostKeyChanged, match=f"host 127.0.0.1:{second.port}"):
        ssh.connect(second.host(jump=jump_to(first), host_key=first.host_key))


def test_target_that_the_jump_host_cannot_reach(jumped: tuple[Sshd, Sshd]) -> None:
    """The message names both."""
    first, second = jumped
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(HostUnreachable, match=f"{port}: not reached through jump host .*{first.port}"):
            ssh.connect(second.host(jump=jump_to(first), port=port))


def test_jump_host(jumped: tuple[Sshd, Sshd]) -> None:
    """Commands run on the target, through one hop."""
    first, second = jumped
    connection = ssh.connect(second.host(jump=jump_to(first)))
    assert output(connection, "echo $SSH_CONNECTION").split()[-1] == str(second.port).encode()
    connection.close()
    assert "closed" in str(connection.lost)


# An established connection


def test_session_that_is_killed(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    """A dropped connection ends what waits for output, is called lost, and is not logged on top."""
    caplog.set_level(logging.INFO)
    connection = ssh.connect(sshd.host())
    process = connection.execute("cat", 10)
    sshd.signal_connections(signal.SIGKILL)
    assert process.recv() == b""
    assert process.lost_within(5)
    with pytest.raises(ConnectionLost):
        connection.execute("true", 5)
    connection.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_peer_that_stops_answering(sshd: Sshd) -> None:
    """A server that is there but dead is noticed after two keep-alive periods."""
    connection = ssh.connect(sshd.host(keepalive_s=1))
    process = connection.execute("cat", 10)
    start = time.monotonic()
    sshd.signal_connections(signal.SIGSTOP)
    assert process.recv() == b""
    assert time.monotonic() - start < 5
    assert "keep-alive" in str(process.lost_within(1))
    connection.close()


def test_idle_connection_stays(sshd: Sshd) -> None:
    """Keep-alive requests that are answered keep the connection."""
    connection = ssh.connect(sshd.host(keepalive_s=1))
    assert output(connection, "sleep 3.5; echo there") == b"there\n"
    connection.close()


def test_command_that_is_never_started(sshd: Sshd) -> None:
    """Opening a channel on a frozen server ends at the deadline."""
    connection = ssh.connect(sshd.host())
    output(connection, ":")  # now the process that serves the session is there
    sshd.signal_connections(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        connection.execute("true", 1)
    assert time.monotonic() - start < 3
    connection.close()


def test_no_session_allowed(start_sshd: Callable[..., Sshd]) -> None:
    """A server that refuses sessions is quoted."""
    connection = ssh.connect(start_sshd("MaxSessions 0").host())
    with pytest.raises(ConnectionLost, match="refused to open a channel"):
        connection.execute("true", 5)
    connection.close()


def test_exit_status(sshd: Sshd) -> None:
    """A status is passed on; after a signal there is none."""
    connection = ssh.connect(sshd.host())
    assert connection.execute("exit 7", 10).wait_exit(10) == 7
    assert connection.execute("kill -9 $$", 10).wait_exit(10) is None
    connection.close()


def test_commands_are_not_delayed(sshd: Sshd) -> None:
    """Small packets go out at once: ten commands in a row take no 40 ms pauses."""
    connection = ssh.connect(sshd.host())
    output(connection, ":")
    process = connection.execute("cat", 10)
    start = time.monotonic()
    for _ in range(100):
        process.send(b"x")
        process.send(b"y")
        received = b""
        while len(received) < 2:
            received += process.recv()
    assert time.monotonic() - start < 2
    process.close()
    connection.close()


def test_forked_child_does_not_hold_the_connection(sshd: Sshd) -> None:
    """When the parent's connection ends the session ends, although a child of the parent lives."""
    connection = ssh.connect(sshd.host())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent lets go
        os._exit(0)
    os.close(read)
    (session,) = sshd.connections()
    ended = os.pidfd_open(session)
    connection._sock.close()  # as the kernel does for a parent that was killed: no farewell on the wire
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)
    os.close(write)
    os.waitpid(child, 0)
    connection.close()
