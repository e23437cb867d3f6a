# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of one VMM process: its descriptors of /dev/kvm and /dev/sev, and every request on them.

Runs in a process of its own, forked by the session's supervisor, which passes it the VMM's notifications.
It ends with the VMM, and then the platform releases what its guests held.
"""

from __future__ import annotations

import collections
import errno
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from . import baton, bpf, descriptors, process_tree, seccomp
from .kvm_system import SystemDevice
from .kvm_vcpu import Vcpu
from .memory import Refusal, TargetMemory, read_path
from .platform_client import PlatformClient
from .profiles import Profile
from .served import may_be_modelled
from .sev_device import SevDevice
from .wire import Disconnected

if TYPE_CHECKING:
    from .cpu.machine import Machine


class Call:
    """One ioctl: who, on what, which, with what argument."""

    __slots__ = ("argument", "descriptor", "identifier", "request", "thread")

    def __init__(self, identifier: int, thread: int, descriptor: int, request: int, argument: int) -> None:
        self.identifier = identifier
        self.thread = thread
        self.descriptor = descriptor
        self.request = request
        self.argument = argument

    @property
    def size(self) -> int:
        """Bytes of the argument structure, as the request's number states."""
        return self.request >> 16 & 0x3FFF


class Device(Protocol):
    """What a descriptor stands for. A handler returns the call's result, or None if it answered."""

    requests: ClassVar[Mapping[int, Callable[..., int | None]]]
    unknown_errno: ClassVar[int]

    def closed(self) -> None:
        """The VMM has closed its last copy of the descriptor."""


class GuestSupervisor:
    """One VMM process.

    :param channel: notifications from the session's supervisor; its end of file ends us.
    :param memory: descriptor of the VMM's /proc/PID/mem, opened by an ancestor of it.
    :param process: the VMM's pidfd; `process_id` its number.
    """

    def __init__(
        self,
        profile: Profile,
        directory: str,
        listener: seccomp.Listener,
        channel: socket.socket,
        memory: int,
        process: int,
        process_id: int,
    ) -> None:
        self.profile = profile
        self.memory = TargetMemory(memory)
        self.devices: dict[int, Device] = {}
        self.vcpu_of_thread: dict[int, Vcpu] = {}
        self.directory = directory
        self.process_id = process_id
        self.machines: list[Machine] = []
        self._listener = listener
        self._channel = channel
        self._process = process
        self._threads: set[int] = set()
        self._unknown: set[tuple[type, int]] = set()
        self._platform: PlatformClient | None = None
        self._ends: dict[int, tuple[socket.socket, int, Device]] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._fetching: collections.deque[tuple[int, Callable[[list[int]], int]]] = collections.deque()
        self._epoll = select.epoll()
        self._buffer = bytearray(seccomp.NOTIFICATION.size)
        self._ended = False

    @property
    def platform(self) -> PlatformClient:
        """The firmware and the ASID pool, connected at first use."""
        if self._platform is None:
            self._platform = PlatformClient(self.directory, (self.memory.descriptor, self._process))
        return self._platform

    def run(self) -> None:
        """Serve until the VMM is gone.

        :raise Disconnected: the platform is gone though the VMM is not.
        """
        try:
            self._serve()
        except Disconnected:
            poller = select.poll()
            poller.register(self._process, select.POLLIN)
            if not poller.poll(0):
                raise

    def _serve(self) -> None:
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        self._epoll.register(self._process, select.EPOLLIN)
        while not self._ended:
            self._step(self._execute())
        for machine in self.machines:
            machine.close()

    def _execute(self) -> float | None:
        """One turn of each VM; seconds until the next, None if something has to happen first."""
        waits = [machine.work() for machine in self.machines]
        return min((wait for wait in waits if wait is not None), default=None)

    def serve_until(self, vcpu: Vcpu) -> bool:
        """Serve while one vCPU's exit is with the VMM; False if the VMM has gone meanwhile."""
        while not vcpu.in_kvm_run:
            if self._ended:
                return False
            self._step(None)
        return True

    def _step(self, timeout_s: float | None) -> None:
        listener = self._listener.descriptor
        for descriptor, _ in self._epoll.poll(timeout_s):
            if descriptor == listener:
                if self._listener.receive(self._buffer):
                    self._sort(self._buffer)
                elif not self._listener.alive():
                    self._epoll.unregister(listener)
            elif descriptor == self._channel.fileno():
                message, copies, *_ = socket.recv_fds(self._channel, baton.MESSAGE_SIZE, 2)
                if message and descriptors.is_message(message):
                    self._fetched(descriptors.results(message, copies))
                elif message:
                    self._told(message)
                else:
                    self._ended = True
            elif descriptor == self._process:
                self._ended = True
            elif descriptor in self._watched:
                self._watched[descriptor]()
            elif descriptor in self._ends:
                self._closed(descriptor)

    def _told(self, message: bytes) -> None:
        if message == baton.TAKE:
            self._epoll.register(self._listener.descriptor, select.EPOLLIN)
        elif message == baton.YIELD:
            self._epoll.unregister(self._listener.descriptor)
            self._channel.send(baton.YIELDED)
        else:
            self._handle(seccomp.NOTIFICATION.unpack(message))

    def _sort(self, notification: bytearray) -> None:
        """Handle what is our VMM's own, pass the rest to the session."""
        fields = seccomp.NOTIFICATION.unpack(notification)
        thread, number = fields[1], fields[3]
        if number == bpf.NR_IOCTL:
            ours = thread in self._threads or self._learn(thread)
        elif number in bpf.OPENS:
            path = read_path(thread, fields[6 + bpf.OPENS[number][0]])
            if not may_be_modelled(path):
                self._listener.let_through(fields[0])
                return
            ours = False
        else:
            ours = number == bpf.NR_TGKILL and fields[6] & 0xFFFFFFFF == self.process_id
        if ours:
            self._handle(fields)
        else:
            self._channel.send(notification)

    def _learn(self, thread: int) -> bool:
        if process_tree.thread_group(thread) != self.process_id:
            return False
        self._threads.add(thread)
        return True

    # Descriptors

    def grant(self, identifier: int, device: Device, close_on_exec: bool = True) -> None:
        """Answer a call with a new descriptor for `device`, whose close we notice."""
        ours, theirs = socket.socketpair()
        number = self._listener.add_descriptor(identifier, theirs.fileno(), close_on_exec)
        theirs.close()
        if number is None:
            ours.close()
            device.closed()
            return
        self.devices[number] = device
        self._ends[ours.fileno()] = (ours, number, device)
        self._epoll.register(ours.fileno(), select.EPOLLHUP)

    def grant_mapped(self, identifier: int, device: Device, name: str, size: int) -> mmap.mmap | None:
        """Answer with a new descriptor that can be mapped; our mapping of it, None if the caller is gone."""
        shared = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(shared, size)
            number = self._listener.add_descriptor(identifier, shared, close_on_exec=True)
            if number is None:
                return None
            self.devices[number] = device
            return mmap.mmap(shared, size)
        finally:
            os.close(shared)

    def fetch(self, call: Call, numbers: Sequence[int], then: Callable[[list[int]], int]) -> int | None:
        """Get copies of the VMM's descriptors for `then`, which takes them over and gives the call's result.

        Each is a descriptor of ours, or -errno.
        """
        self._fetching.append((call.identifier, then))
        self._channel.send(descriptors.question(numbers))
        return None

    def _fetched(self, copies: list[int]) -> None:
        identifier, then = self._fetching.popleft()
        try:
            result = then(copies)
        except Refusal as refusal:
            result = -refusal.errno
        self._listener.answer(identifier, result)

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever this descriptor can be read."""
        self._watched[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Not any more."""
        del self._watched[descriptor]
        self._epoll.unregister(descriptor)

    def _closed(self, descriptor: int) -> None:
        ours, number, device = self._ends.pop(descriptor)
        self._epoll.unregister(descriptor)
        ours.close()
        if self.devices.get(number) is device:
            del self.devices[number]
        device.closed()

    # Requests

    def _handle(self, fields: Sequence[int]) -> None:
        identifier, thread, number, arguments = fields[0], fields[1], fields[3], fields[6:]
        try:
            if number == bpf.NR_IOCTL:
                result = self._ioctl(identifier, thread, arguments)
            elif number == bpf.NR_TGKILL:
                result = self._kick(identifier, arguments[1] & 0xFFFFFFFF)
            else:
                self._open(identifier, thread, number, arguments)
                return
        except Refusal as refusal:
            result = -refusal.errno
        if result is not None:
            self._listener.answer(identifier, result)

    def _ioctl(self, identifier: int, thread: int, arguments: Sequence[int]) -> int | None:
        device = self.devices.get(arguments[0] & 0xFFFFFFFF)
        if device is None:
            self._listener.let_through(identifier)
            return None
        request = arguments[1] & 0xFFFFFFFF
        handler = device.requests.get(request)
        if handler is None:
            self._tell_unknown(device, request)
            return -device.unknown_errno
        return handler(device, Call(identifier, thread, arguments[0] & 0xFFFFFFFF, request, arguments[2]))

    def _tell_unknown(self, device: Device, request: int) -> None:
        """Into the log, once: a request that the model lacks, or that the modelled kernel lacks too."""
        if (type(device), request) not in self._unknown:
            self._unknown.add((type(device), request))
            print(f"{type(device).__name__}: no answer to request {request:#x}", file=sys.stderr, flush=True)

    def _open(self, identifier: int, thread: int, number: int, arguments: Sequence[int]) -> None:
        path_index, flags_index = bpf.OPENS[number]
        flags = os.O_RDWR if flags_index is None else arguments[flags_index]
        device: Device
        if read_path(thread, arguments[path_index]) == b"/dev/kvm":
            device = SystemDevice(self)
        elif self.profile.sev:
            device = SevDevice(self, writable=flags & os.O_ACCMODE != os.O_RDONLY)
        else:
            raise Refusal(errno.ENOENT)
        self.grant(identifier, device, bool(flags & os.O_CLOEXEC))

    # KVM_RUN

    def park(self, call: Call, vcpu: Vcpu) -> None:
        """Leave KVM_RUN unanswered: the guest is executing."""
        vcpu.waiting = call.identifier
        if self.profile.execute:
            vcpu.vm.execute(vcpu)

    def answer(self, identifier: int, result: int) -> None:
        """End a call that was left unanswered."""
        self._listener.answer(identifier, result)

    def _kick(self, identifier: int, thread: int) -> int | None:
        """SIGUSR1 to a vCPU's thread ends its KVM_RUN, or the next one.

        The signal itself is swallowed: delivered, it would cancel whatever request the thread waits in,
        and we would not be told.
        """
        vcpu = self.vcpu_of_thread.get(thread)
        if vcpu is None:
            self._listener.let_through(identifier)
            return None
        if vcpu.in_kvm_run:
            vcpu.interrupted()
            vcpu.leave(-errno.EINTR)
        else:
            vcpu.request_immediate_exit()
        return 0
