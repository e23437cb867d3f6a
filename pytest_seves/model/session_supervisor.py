# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor of one session: answers files itself, starts a supervisor for each guest (supervisor.py).

A process that opens /dev/kvm or /dev/sev is a guest's; its requests go to that supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from . import baton, bpf, descriptors, process_tree, seccomp
from .memory import Refusal, TargetMemory, read_path
from .served import CPUID_DEVICE, ServedFiles, may_be_modelled

if TYPE_CHECKING:
    from .profiles import Profile

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*ENDING_SIGNALS, signal.SIGCHLD)
_DEVICES = (b"/dev/kvm", b"/dev/sev")
#: What breaks in the model itself, in its directory.
LOG_NAME = "model.log"


def log_failure() -> None:
    """The exception being handled, into the model's log."""
    import traceback

    traceback.print_exc()


class GuestProcess(NamedTuple):
    """A process with KVM descriptors: its pidfd, its supervisor, and our end of the channel to that."""

    process: int
    pidfd: int
    supervisor: int
    channel: socket.socket


class Session:
    """The supervisor's event loop.

    :param profile: as :func:`profiles.resolve` takes it.
    :param directory: where the platform's socket and the logs are.
    """

    def __init__(self, profile: str, encryption_ebx: int, directory: str, listener: int, child: int) -> None:
        self._profile_name = profile
        self._encryption_ebx = encryption_ebx
        self._directory = directory
        self._listener = seccomp.Listener(listener)
        self._child = child
        self._guests: dict[int, GuestProcess] = {}
        self._channels: dict[int, GuestProcess] = {}
        self._routes: dict[int, socket.socket] = {}
        self._receiver: GuestProcess | None = None
        self._next_receiver: GuestProcess | None = None
        self._yield_asked = False
        self._ended_supervisors: dict[int, int] = {}
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)

    # What most sessions never need is imported when first wanted: starting one must be quick.

    @cached_property
    def _profile(self) -> Profile:
        from .profiles import resolve

        return resolve(self._profile_name, encryption_ebx=self._encryption_ebx)

    @cached_property
    def _served(self) -> ServedFiles:
        return ServedFiles(self._profile, self._usage, self._directory)

    def run(self, signals: int) -> int:
        """Serve until the child has ended or the session is dropped; the child's wait status.

        :param signals: where :data:`SIGNALS`, which are blocked, are read from.
        """
        self._epoll.register(signals, select.EPOLLIN)
        buffer = bytearray(seccomp.NOTIFICATION.size)
        listener = self._listener.descriptor
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == listener:
                    self._receive(buffer)
                elif descriptor in self._channels:
                    self._hear(self._channels[descriptor])
                elif descriptor == signals:
                    status = self._signalled(seccomp.read_signal(signals))
                    if status is not None:
                        return status

    def _receive(self, buffer: bytearray) -> None:
        if self._listener.receive(buffer):
            self._handle(buffer)
        elif not self._listener.alive():
            self._epoll.unregister(self._listener.descriptor)

    def _hear(self, guest: GuestProcess) -> None:
        """A message of a guest's supervisor, or its end."""
        try:
            message = guest.channel.recv(baton.MESSAGE_SIZE)
        except ConnectionError:
            message = b""
        if not message:
            self._guest_ended(guest)
        elif message == baton.YIELDED:
            self._hand_over()
        elif descriptors.is_message(message):
            with contextlib.suppress(ConnectionError):  # its end is noticed by the next message
                descriptors.answer(guest.channel, guest.pidfd, message)
        else:
            self._handle(message)

    def _handle(self, notification: bytes | bytearray) -> None:
        fields = seccomp.NOTIFICATION.unpack(notification)
        identifier, thread, number, arguments = fields[0], fields[1], fields[3], fields[6:]
        if number == bpf.NR_IOCTL:
            route = self._routes.get(thread) or self._route(thread)
            if route is None or not self._forward(route, notification):
                self._listener.let_through(identifier)
            return
        try:
            self._answer(notification, identifier, thread, number, arguments)
        except Refusal as refusal:
            self._listener.answer(identifier, -refusal.errno)

    def _answer(
        self,
        notification: bytes | bytearray,
        identifier: int,
        thread: int,
        number: int,
        arguments: Sequence[int],
    ) -> None:
        if number in bpf.OPENS:
            self._open(notification, identifier, thread, number, arguments)
        elif number == bpf.NR_TGKILL:
            guest = self._guests.get(arguments[0] & 0xFFFFFFFF)
            if guest is None or not self._forward(guest.channel, notification):
                self._listener.let_through(identifier)
        elif number == bpf.NR_UNAME:
            self._write(thread, arguments[0], self._served.uname())
            self._listener.answer(identifier, 0)
        else:
            self._pread(identifier, thread, arguments)

    def _open(
        self,
        notification: bytes | bytearray,
        identifier: int,
        thread: int,
        number: int,
        arguments: Sequence[int],
    ) -> None:
        path_index, flags_index = bpf.OPENS[number]
        path = read_path(thread, arguments[path_index])
        if path in _DEVICES:
            guest = self._guest_of(thread)
            if guest is None or not self._forward(guest.channel, notification):
                raise Refusal(errno.ENODEV)
            return
        if not may_be_modelled(path):
            self._listener.let_through(identifier)
            return
        flags = os.O_RDONLY if flags_index is None else arguments[flags_index]
        ours = self._served.open(path, flags)
        if ours is None:
            self._listener.let_through(identifier)
            return
        try:
            self._listener.add_descriptor(identifier, ours, bool(flags & os.O_CLOEXEC))
        finally:
            os.close(ours)

    def _pread(self, identifier: int, thread: int, arguments: Sequence[int]) -> None:
        try:
            target = os.readlink(f"/proc/{thread}/fd/{arguments[0] & 0xFFFFFFFF}")
        except OSError:
            target = ""
        if CPUID_DEVICE not in target:
            self._listener.let_through(identifier)
            return
        data = self._served.cpuid(arguments[3])
        self._write(thread, arguments[1], data)
        self._listener.answer(identifier, len(data))

    def _write(self, thread: int, address: int, data: bytes) -> None:
        try:
            descriptor = os.open(f"/proc/{thread}/mem", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            raise Refusal(errno.EFAULT) from None
        try:
            TargetMemory(descriptor).write(address, data)
        finally:
            os.close(descriptor)

    # Guests

    def _route(self, thread: int) -> socket.socket | None:
        process = process_tree.thread_group(thread)
        guest = self._guests.get(process) if process is not None else None
        if guest is None:
            return None
        self._routes[thread] = guest.channel
        return guest.channel

    def _guest_of(self, thread: int) -> GuestProcess | None:
        process = process_tree.thread_group(thread)
        if process is None:
            return None
        if process not in self._guests:
            guest = self._start_supervisor(process)
            if guest is None:
                return None
            self._guests[process] = guest
            self._channels[guest.channel.fileno()] = guest
            self._epoll.register(guest.channel.fileno(), select.EPOLLIN)
            self._offer(guest)
        return self._guests[process]

    def _offer(self, guest: GuestProcess) -> None:
        """Let the newest guest's supervisor receive: a launch is what is worth the speed."""
        self._next_receiver = guest
        if self._receiver is None:
            self._hand_over()
        elif not self._yield_asked:
            self._yield_asked = self._forward(self._receiver.channel, baton.YIELD)

    def _hand_over(self) -> None:
        """The receiver has stopped (or we were it): the next one takes over, or we do."""
        old, new = self._receiver, self._next_receiver
        self._receiver, self._next_receiver, self._yield_asked = new, None, False
        if new is not None and not self._forward(new.channel, baton.TAKE):
            self._receiver = None
        if old is None and self._receiver is not None:
            self._epoll.unregister(self._listener.descriptor)
        elif old is not None and self._receiver is None:
            self._epoll.register(self._listener.descriptor, select.EPOLLIN)

    def _start_supervisor(self, process: int) -> GuestProcess | None:
        from .supervisor import GuestSupervisor

        try:
            memory = os.open(f"/proc/{process}/mem", os.O_RDWR | os.O_CLOEXEC)
            pidfd = os.pidfd_open(process)
        except OSError:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor = os.fork()
        if supervisor == 0:
            status = 1
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                seccomp.die_with_parent(signal.SIGKILL)
                self._close_inherited(ours)
                ends = (theirs, memory, pidfd, process)
                GuestSupervisor(self._profile, self._directory, self._listener, *ends).run()
                status = 0
            except Exception:  # noqa: BLE001  the process boundary: into the log, then fail closed
                log_failure()
            finally:
                os._exit(status)
        theirs.close()
        os.close(memory)
        return GuestProcess(process, pidfd, supervisor, ours)

    def _close_inherited(self, ours: socket.socket) -> None:
        ours.close()
        self._epoll.close()
        for guest in self._guests.values():
            guest.channel.close()
            os.close(guest.pidfd)

    def _forward(self, channel: socket.socket, message: bytes | bytearray) -> bool:
        try:
            channel.send(message)
        except ConnectionError:
            return False
        return True

    def _guest_ended(self, guest: GuestProcess) -> None:
        """A supervisor ends after its guest. One that failed is broken, and its guest must not go on."""
        self._guests.pop(guest.process, None)
        self._channels.pop(guest.channel.fileno(), None)
        self._epoll.unregister(guest.channel.fileno())
        for thread in [thread for thread, channel in self._routes.items() if channel is guest.channel]:
            del self._routes[thread]
        if guest is self._next_receiver:
            self._next_receiver = None
        if guest is self._receiver:
            self._hand_over()
        guest.channel.close()
        os.close(guest.pidfd)
        status = self._ended_supervisors.pop(guest.supervisor, None)
        if status is None:
            _, status = os.waitpid(guest.supervisor, 0)
        if status != 0:
            print(
                f"supervisor of process {guest.process} ended with {status:#x}; killing it", file=sys.stderr
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(guest.process, signal.SIGKILL)

    def _usage(self) -> tuple[int, int]:
        from .platform_client import PlatformClient

        client = PlatformClient(self._directory, None)
        try:
            values, _ = client.request("asid_usage")
        finally:
            client.close()
        return values["sev"], values["sev_es"]

    # The end

    def _signalled(self, number: int) -> int | None:
        if number in ENDING_SIGNALS:
            return signal.SIGHUP
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if process == 0:
                return None
            if process == self._child:
                return status
            self._ended_supervisors[process] = status  # of an adopted orphan, too: never asked for

    def close(self) -> None:
        """Kill what the command left behind, then wait until every guest's resources are released."""
        with contextlib.suppress(ChildProcessError):  # no child at all: nothing to look for
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            self._end_descendants()

    def _end_descendants(self) -> None:
        supervisors = frozenset(guest.supervisor for guest in self._guests.values())
        process_tree.end_descendants(spare=supervisors)
        for guest in self._guests.values():
            guest.channel.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(guest.supervisor, 0)
