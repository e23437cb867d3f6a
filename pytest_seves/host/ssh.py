# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH to a host of the lab: pinned keys only, a deadline on everything, a dead peer noticed.

The only module that imports paramiko, and itself imported only when a host is used.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, suppress

import paramiko
from paramiko.pkey import UnknownKeyType

from pytest_seves.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DeadlineExceeded,
    HostKeyChanged,
    HostUnreachable,
)
from pytest_seves.host.dial import Deadline, tcp, within
from pytest_seves.host.hop import Hop, jump_hop, target_hop
from pytest_seves.host.hostkeys import (
    CONSOLE,
    HostKey,
    check,
    public_half,
)
from pytest_seves.host.inventory import LabHost

_LOG = "pytest_seves.ssh"
# What paramiko logs as errors, with tracebacks, is what we raise: say it once. Whoever wants more sets a
# level.
logging.getLogger(_LOG).setLevel(logging.CRITICAL)

_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_FAILURES = (paramiko.SSHException, EOFError, OSError)


class Process:
    """A command that runs on the host. Read both of its streams all the time: they share one window."""

    def __init__(self, connection: Connection, channel: paramiko.Channel) -> None:
        self._connection = connection
        self._channel = channel

    def recv(self, size: int = 1 << 16) -> bytes:
        """Wait for output; b"" at its end, also when the connection broke."""
        return self._take(self._channel.recv, size)

    def recv_stderr(self, size: int = 1 << 16) -> bytes:
        """Wait for stderr; b"" at its end."""
        return self._take(self._channel.recv_stderr, size)

    @staticmethod
    def _take(recv: Callable[[int], bytes], size: int) -> bytes:
        try:
            return recv(size)
        except _FAILURES:  # acknowledging it met a connection that was just breaking
            return b""

    def send(self, data: bytes) -> None:
        """Send all of `data` to stdin. Blocks while the command does not read; :meth:`close` ends that.

        :raises OSError: the channel is closed.
        """
        try:
            self._channel.sendall(data)
        except (paramiko.SSHException, EOFError) as error:
            raise ConnectionError(str(error) or "closed") from error

    def wait_exit(self, timeout_s: float) -> int | None:
        """The exit status; None when there is none in time, after a signal or a broken connection."""
        self._channel.status_event.wait(timeout_s)
        status = self._channel.exit_status
        return None if status < 0 else status

    def lost_within(self, timeout_s: float) -> str | None:
        """Why the connection under this command is gone, or None if it lives on for `timeout_s`."""
        return self._connection.lost_within(timeout_s)

    def send_eof(self) -> None:
        """End the command's stdin."""
        with suppress(*_FAILURES):
            self._channel.shutdown_write()

    def close(self) -> None:
        """Close the channel: the command's stdin ends, its output goes nowhere."""
        with suppress(*_FAILURES):
            self._channel.close()


class Connection:
    """An authenticated connection to a host. Made by :func:`connect`."""

    def __init__(self, host: LabHost, transports: list[paramiko.Transport], sock: socket.socket) -> None:
        self.host = host
        self._transports = transports
        self._sock = sock
        self._closing = threading.Event()
        self._reason: str | None = None
        _connections.add(self)
        threading.Thread(target=self._keep_alive, name=f"ssh-keepalive-{host.name}", daemon=True).start()

    @property
    def lost(self) -> str | None:
        """Why the connection can no longer be used, or None."""
        if self._reason is None and not self._transports[-1].is_active():
            return "the host closed the connection or it broke"
        return self._reason

    def lost_within(self, timeout_s: float) -> str | None:
        """:attr:`lost`, or None if the connection lives on for `timeout_s`."""
        self._transports[-1].join(timeout_s)  # its channels end first
        return self.lost

    def execute(self, command: str, timeout_s: float) -> Process:
        """Start `command` in the user's login shell.

        :raises ConnectionLost: the connection is gone.
        :raises DeadlineExceeded: the host did not start it within `timeout_s`.
        """
        deadline = Deadline(timeout_s)
        try:
            channel = self._transports[-1].open_session(timeout=timeout_s)
        except _FAILURES as error:
            raise self._refused("open a channel", deadline, error) from error
        # exec_command waits for the answer without limit; closing the channel ends that
        timer = threading.Timer(deadline.remaining, channel.close)
        timer.start()
        try:
            channel.exec_command(command)
        except _FAILURES as error:
            channel.close()
            raise self._refused("start a command", deadline, error) from error
        finally:
            timer.cancel()
        return Process(self, channel)

    def _refused(self, what: str, deadline: Deadline, error: Exception) -> Exception:
        if self.lost:
            return ConnectionLost(f"cannot {what}: {self.lost}", host=self.host.name)
        if not deadline.remaining:
            return DeadlineExceeded(
                f"tried to {what}: the SSH server did not answer within {deadline.seconds:g} s",
                host=self.host.name,
            )
        return ConnectionLost(
            f"the SSH server refused to {what}: {error}. Is there a low MaxSessions in its sshd_config?",
            host=self.host.name,
        )

    def _keep_alive(self) -> None:
        """Ask for a sign of life every `keepalive_s`; without an answer within the same time, give up.

        paramiko's own set_keepalive() asks for no answer, so it never notices a peer that is gone (its issues
        #918 and #2463). A request that the server does not know is refused, and a refusal is an answer.
        """
        interval = self.host.keepalive_s
        while not self._closing.wait(interval):
            timer = threading.Timer(
                interval, self._drop, [f"no answer to a keep-alive request for {interval} s"]
            )
            timer.daemon = True
            timer.start()
            with suppress(*_FAILURES):
                self._transports[-1].global_request("keepalive@openssh.com", wait=True)
            timer.cancel()
            if not self._transports[-1].is_active():
                return

    def _drop(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a thread that waits in recv wakes up at once
        self._transports[0].join(1)  # first the way through a jump host, or the other writes to its remains
        for transport in reversed(self._transports):
            _close(transport)

    def close(self) -> None:
        """Close every channel and the connection."""
        self._closing.set()
        self._drop("closed")
        for transport in self._transports:
            transport.join(5)
        self._sock.close()

    def forget_in_child(self) -> None:
        """Close a forked child's copy of the socket: the connection is to end when the parent does."""
        self._reason = "the connection belongs to the process that was forked"
        self._sock.close()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    for connection in list(_connections):
        connection.forget_in_child()


os.register_at_fork(after_in_child=_after_fork)


def connect(host: LabHost) -> Connection:
    """Connect and authenticate, within `host.connect_timeout_s` altogether.

    :raises ConnectError: the subclass says what went wrong, the message what to do.
    """
    deadline = Deadline(host.connect_timeout_s)
    jump, target = jump_hop(host), target_hop(host)
    with ExitStack() as undo:
        if jump:
            sock = undo.enter_context(tcp(jump.host, jump.where, jump.address, jump.port, deadline))
            first = _session(jump, sock, deadline, undo)
            channel = _through(first, jump, target, deadline)
            transports = [first, _session(target, channel, deadline, undo)]
        else:
            sock = undo.enter_context(tcp(target.host, target.where, target.address, target.port, deadline))
            transports = [_session(target, sock, deadline, undo)]
        undo.pop_all()
    return Connection(host, transports, sock)


def _through(transport: paramiko.Transport, hop: Hop, target: Hop, deadline: Deadline) -> paramiko.Channel:
    """A channel from the jump host to the target."""
    where, ours = (target.address, target.port), ("127.0.0.1", 0)
    try:
        channel = transport.open_channel("direct-tcpip", where, ours, timeout=deadline.remaining)
    except _FAILURES as error:
        raise HostUnreachable(
            f"{target.where}: not reached through {hop.where}: {error}. Is the machine up, and may the jump"
            " host forward to it (AllowTcpForwarding, PermitOpen)?",
            host=hop.host,
        ) from error
    # When the way breaks, the session behind it closes this in its own thread, and the channel then tells the
    # connection that has gone: EOFError where nobody catches anything (paramiko 5.1).
    close = channel.close

    def close_quietly() -> None:
        with suppress(*_FAILURES):
            close()

    channel.close = close_quietly  # type: ignore[method-assign]
    return channel


def _session(
    hop: Hop, sock: socket.socket | paramiko.Channel, deadline: Deadline, undo: ExitStack
) -> paramiko.Transport:
    """An authenticated SSH session with `hop` over `sock`."""
    transport = paramiko.Transport(sock)
    undo.callback(transport.packetizer.complete_handshake)  # or its timer thread goes on
    undo.callback(_close, transport)
    transport.set_log_channel(_LOG)
    transport.banner_timeout = transport.handshake_timeout = max(deadline.remaining, 0.001)
    known = transport.get_security_options().key_types
    algorithms = [a for t in hop.pins.types for a in (_RSA if t == "ssh-rsa" else (t,)) if a in known]
    if algorithms:
        transport.get_security_options().key_types = algorithms
    _handshake(transport, hop, deadline)
    remote = transport.get_remote_server_key()
    check(HostKey(remote.get_name(), remote.asbytes()), hop.pins, hop.where, hop.host)
    _authenticate(transport, hop, deadline)
    return transport


def _close(transport: paramiko.Transport) -> None:
    with suppress(*_FAILURES):
        transport.close()


def _handshake(transport: paramiko.Transport, hop: Hop, deadline: Deadline) -> None:
    event = threading.Event()
    transport.start_client(event=event)
    if event.wait(deadline.remaining) and transport.is_active():
        return
    error = transport.get_exception()
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(error):
        raise HostKeyChanged(
            f"{hop.where}: presents no key of the pinned types: {', '.join(hop.pins.types)} (from"
            f" {hop.pins.source}). See `ssh-keyscan -p {hop.port} {hop.address}`, compare with {CONSOLE},"
            " then pin what is right",
            host=hop.host,
        ) from error
    if not deadline.remaining:
        why = f"no answer within {deadline.seconds:g} s"
    else:
        why = str(error or "") or "the other side closed the connection"
    raise HostUnreachable(
        f"{hop.where}: accepts TCP connections, but the SSH handshake failed: {why}. Is it an SSH server, and"
        " not overloaded (MaxStartups)?",
        host=hop.host,
    ) from error


def _authenticate(transport: paramiko.Transport, hop: Hop, deadline: Deadline) -> None:
    tried: list[str] = []
    notes: list[str] = []
    with closing(_keys(hop, deadline, notes)) as keys:
        for name, key in keys:
            why = _offer(transport, hop.user, key, deadline)
            if transport.is_authenticated():
                return
            tried.append(f"{name} ({key.get_name()}): {why}")
            if not (transport.is_active() and deadline.remaining):
                notes.append("the server closed the connection" if deadline.remaining else "out of time")
                break
    raise AuthenticationFailed(
        f"{hop.where}: user {hop.user!r} was not let in. Tried: {'; '.join(tried) or 'no key at all'}."
        f" {' '.join(note + '.' for note in notes)} Is the public key in its authorized_keys? Name the"
        " private one as `identity` in the lab file, or load it with ssh-add",
        host=hop.host,
        user=hop.user,
        tried=tried,
    )


def _offer(transport: paramiko.Transport, user: str, key: paramiko.PKey, deadline: Deadline) -> object:
    """Try one key; why it was not accepted, if it was not."""
    event = threading.Event()
    try:
        transport.auth_publickey(user, key, event)
    except _FAILURES as error:
        return error
    if not event.wait(deadline.remaining):
        return f"no answer within {deadline.seconds:g} s"
    return transport.get_exception() or "refused"


def _keys(hop: Hop, deadline: Deadline, notes: list[str]) -> Generator[tuple[str, paramiko.PKey], None, None]:
    """The keys to offer: the identity file; the SSH agent's, when there is no file or it has a passphrase."""
    wanted: bytes | None = None
    if hop.identity:
        try:
            yield str(hop.identity), paramiko.PKey.from_path(hop.identity)
            return
        except (TypeError, paramiko.PasswordRequiredException):
            notes.append(
                f"{hop.identity} has a passphrase, which is not asked for: the SSH agent must hold the key"
            )
            wanted = public_half(hop.identity)
        except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
            notes.append(f"{hop.identity} cannot be used: {error}")
            return
    try:
        agent = within(deadline, _ssh_agent)
    except (OSError, paramiko.SSHException) as error:
        notes.append(
            f"no SSH agent answers at SSH_AUTH_SOCK={os.environ.get('SSH_AUTH_SOCK', '')!r} ({error})"
        )
        return
    keys = [key for key in agent.get_keys() if wanted in (None, key.asbytes())]
    if not keys:
        notes.append("the SSH agent does not hold the key" if wanted else "the SSH agent holds no keys")
    with closing(agent):
        for key in keys:
            yield f"SSH agent key {key.comment or key.fingerprint}", key


def _ssh_agent() -> paramiko.Agent:
    # paramiko takes an agent that does not answer for one without keys, and leaks the socket
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(os.environ.get("SSH_AUTH_SOCK") or "/nonexistent")
    try:
        return paramiko.Agent()
    except paramiko.SSHException as error:
        raise ConnectionError(str(error)) from error
