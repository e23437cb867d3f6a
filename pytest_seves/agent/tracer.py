# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop that follows every thread of a VMM from stop to stop.

Two ways to stop, one interface. "trace": a seccomp filter stops the VMM at the recorded ioctls only.
"stop": system call stops, where a user-notification listener would take those ioctls before the filter's
verdict counts. Either way a vCPU's first KVM_RUN is met with a system call stop:

* trace: from KVM_SEV_LAUNCH_FINISH or KVM_SET_CLOCK (QEMU sets the clock when it lets the vCPUs go), or when
  nothing has happened for a while, the threads that own a vCPU are followed until each has run;
* stop: every thread stops at every system call, all the time. Letting a vCPU's thread go in KVM_RUN would
  lose what it does of its own accord (memory regions, a dump of its registers). Threads of certain names go
  free: QEMU's monitor reads its socket byte by byte, and with stops each QMP command took 40 ms.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Optional

from pytest_seves.agent import capture, ptrace
from pytest_seves.agent.capture import Call
from pytest_seves.agent.descriptors import Descriptors
from pytest_seves.agent.injection import Injecting
from pytest_seves.agent.journal import Journal
from pytest_seves.agent.sabotage import Injection, Saboteur
from pytest_seves.agent.tracee import Process, Tracee, send_signal, signed, thread_group, wait_status
from pytest_seves.spec import kvm, sev

_GROUP_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_IDLE_S = 0.003
_QUIET_S = 0.1
_FINISH = int(sev.SevCmd.KVM_SEV_LAUNCH_FINISH)
_UPDATE_VMSA = int(sev.SevCmd.KVM_SEV_LAUNCH_UPDATE_VMSA)


class Tracer:
    """Traces `child`, a seized process that has not yet called execve, and all that it starts."""

    def __init__(self, child: int, *, trace: bool, saboteur: Saboteur, journal: Journal) -> None:
        self.child = child
        self.exits: dict[int, int] = {}
        self.stops = {"syscall": 0, "seccomp": 0, "signal": 0, "event": 0}
        self.ran: set[int] = set()
        self.free: frozenset[bytes] = frozenset()  # threads of these names are let go
        self.events = 0
        self.last: Optional[int] = None  # the process that used KVM and ended last
        self._trace = trace
        self._saboteur = saboteur
        self._journal = journal
        self._plans = {request: capture.plan(request) for request in capture.RECORDED | saboteur.requests}
        self._every_run = kvm.KVM_RUN in self._plans
        self._every_capability = kvm.KVM_CHECK_EXTENSION in saboteur.requests
        self._resume = ptrace.CONT if trace else ptrace.SYSCALL
        self._processes: dict[int, Process] = {}
        self._tracees: dict[int, Tracee] = {}
        self._held: Optional[int] = None  # a thread that waits until those below have stopped
        self._asked: set[int] = set()  # threads that were interrupted in order to be followed
        self._unwatched = False  # vCPUs were made, and nobody watches for their first KVM_RUN
        self._flush_soon = False
        self.started = False  # execve succeeded
        self._add(child, Process(child, Descriptors(child)))

    # The loop

    def run(self) -> None:
        """Follow until the last tracee is gone; BrokenPipeError: nobody reads the journal any more."""
        while True:
            try:
                tid, status = self._wait()
            except ChildProcessError:
                return
            if status & 0xFF != 0x7F:
                self._ended(tid, status)
                continue
            tracee = self._tracees.get(tid)
            if tracee is None:
                tracee = self._early(tid)
            if self._asked and tid in self._asked:
                self._stopped_as_asked(tracee)
            number, event = status >> 8 & 0xFF, status >> 16
            if number == ptrace.SYSCALL_STOP:
                self._syscall_stop(tracee)
            elif event == ptrace.EVENT_SECCOMP:
                self._seccomp_stop(tracee)
            else:
                self._other_stop(tracee, number, event)

    def _wait(self) -> tuple[int, int]:
        """The next stop; the time until it comes is used for the journal."""
        journal = self._journal
        while True:
            tid, status = os.waitpid(-1, ptrace.WALL | os.WNOHANG)
            if tid:
                return tid, status
            if self._flush_soon:
                self._flush_soon = False
                journal.flush()
            elif journal.work():
                continue
            if not journal.unwritten and not self._unwatched:
                return os.waitpid(-1, ptrace.WALL)
            if signal.sigtimedwait({signal.SIGCHLD}, _IDLE_S if journal.unwritten else _QUIET_S) is None:
                if not journal.unwritten:
                    self._nothing_happens()
                journal.flush()

    def _resume_from(self, tracee: Tracee, number: int = 0) -> None:
        if tracee.tid != self._held:
            wanted = tracee.call is not None or tracee.injecting is not None
            ptrace.resume(ptrace.SYSCALL if wanted else tracee.resume, tracee.tid, number)

    def _syscall_stop(self, tracee: Tracee) -> None:
        self.stops["syscall"] += 1
        if tracee.skip_exit:
            tracee.skip_exit = False
            ptrace.resume(tracee.resume, tracee.tid)
            return
        kind, number, fd, request, arg = ptrace.syscall_entry(tracee.tid)
        if kind == ptrace.INFO_ENTRY:
            if tracee.injecting is None:
                self._syscall_entry(tracee, number, fd, request, arg)
        elif kind == ptrace.INFO_EXIT:
            if tracee.injecting is not None:
                self._injected(tracee, tracee.injecting, ptrace.syscall_result())
            elif tracee.call is not None:
                self._leave(tracee, tracee.call, ptrace.syscall_result())
        self._resume_from(tracee)

    def _syscall_entry(self, tracee: Tracee, number: int, fd: int, request: int, arg: int) -> None:
        if number == ptrace.SYS_IOCTL:
            request &= 0xFFFFFFFF
            if request == kvm.KVM_RUN and not self._every_run:
                self._run_entry(tracee, fd)
                return
            if self._trace:  # the filter's stop comes next
                return
            capability = self._every_capability or arg & 0xFFFFFFFF in capture.CAPABILITIES
            if request in self._plans and (request != kvm.KVM_CHECK_EXTENSION or capability):
                self._enter(tracee, fd, request, arg)
                return
        elif tracee.takes_name(number, fd, request, self.free):
            tracee.resume = ptrace.CONT
            return
        tracee.skip_exit = not self._trace

    def _seccomp_stop(self, tracee: Tracee) -> None:
        self.stops["seccomp"] += 1
        if tracee.injecting is None:
            kind, _, fd, request, arg = ptrace.syscall_entry(tracee.tid)
            if kind:
                self._enter(tracee, fd, request & 0xFFFFFFFF, arg)
        self._resume_from(tracee)

    def _other_stop(self, tracee: Tracee, number: int, event: int) -> None:
        if event == 0:
            self.stops["signal"] += 1
            self._resume_from(tracee, number)
            return
        self.stops["event"] += 1
        if event == ptrace.EVENT_STOP and number in _GROUP_STOPS:
            ptrace.resume(ptrace.LISTEN, tracee.tid)
            return
        if event == ptrace.EVENT_EXEC:
            self._executed(tracee)
        elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
            self._forked(tracee)
        self._resume_from(tracee)

    # Threads and processes

    def _add(self, tid: int, process: Process) -> Tracee:
        self._processes[process.pid] = process
        self._tracees[tid] = tracee = Tracee(tid, process, self._resume)
        return tracee

    def _early(self, tid: int) -> Tracee:
        """Its first stop came before its parent's event."""
        pid = thread_group(tid)
        return self._add(tid, self._processes.get(pid) or Process(pid, Descriptors(pid)))

    def _forked(self, parent: Tracee) -> None:
        tid = ptrace.event_message(parent.tid)
        if tid is None:
            return
        process = parent.process
        known = self._tracees.get(tid)
        if os.path.exists(f"/proc/{process.pid}/task/{tid}"):
            known = known or self._add(tid, process)
            if process.follow_new and process.waiting:
                known.resume = ptrace.SYSCALL
        elif known is None:
            self._add(tid, Process(tid, process.descriptors.forked(tid)))
        elif known.process is not process and not known.process.used_kvm:
            known.process.descriptors = process.descriptors.forked(tid)

    def _executed(self, tracee: Tracee) -> None:
        if (former := ptrace.event_message(tracee.tid)) not in (None, tracee.tid):
            self._tracees.pop(former, None)
        tracee.executed(self._resume)
        tracee.process.executed()
        if tracee.tid == self.child and not self.started:
            self.started = True
            self._journal.milestone({"started": self.child})
            self._journal.flush()

    def _ended(self, tid: int, status: int) -> None:
        tracee = self._tracees.pop(tid, None)
        self._asked.discard(tid)
        self._release()
        if tid == self.child:
            self.exits[tid] = status
        if tracee is None:
            return
        process = tracee.process
        process.waiting = {vcpu: owner for vcpu, owner in process.waiting.items() if owner != tid}
        if tid == process.pid:
            self.exits[tid] = status
            process.memory.close()
            self._processes.pop(tid, None)
            if process.used_kvm:
                self.last = tid
            if tid == self.child and self._processes:
                self._journal.milestone({"detached": wait_status(status)})
                if status & 0x7F == signal.SIGKILL:  # whoever did that wants all of it gone
                    self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to the first process, or, when that is gone, to all that it left behind."""
        send_signal([self.child] if self.child in self._processes else [*self._processes], number)

    # Calls

    def _enter(self, tracee: Tracee, fd: int, request: int, arg: int) -> None:
        process = tracee.process
        call = Call(time.monotonic_ns(), process.pid, tracee.tid, signed(fd), request, arg, process.memory)
        call.descriptor = descriptor = process.descriptors.at(call.fd, request)
        call.plan = self._plans[request]
        call.enter()
        process.used_kvm = True
        changes = None
        if request in self._saboteur.requests:
            changes = self._saboteur.enter(call)
            if changes is not None and not call.executed:
                ptrace.poke(tracee.tid, ptrace.ORIG_RAX, -1)
                ptrace.poke(tracee.tid, ptrace.RAX, changes.result or 0)
            elif changes is not None and changes.argument is not None:
                ptrace.poke(tracee.tid, ptrace.RDX, call.arg)
        if descriptor.vcpu is not None:
            vcpu = descriptor.vm, descriptor.vcpu
            if vcpu in process.waiting:
                process.waiting[vcpu] = tracee.tid
                if request == kvm.KVM_RUN:
                    self._first_run(process, vcpu)
        in_setup = descriptor.vm not in process.live and tracee.resume == ptrace.CONT
        if changes is None and in_setup and request in capture.REGISTERS:
            self._emit(call)
            return
        tracee.call = call
        tracee.changes = changes

    def _leave(self, tracee: Tracee, call: Call, ret: int) -> None:
        changes, tracee.call, tracee.changes = tracee.changes, None, None
        call.dt = time.monotonic_ns() - call.issued_ns
        if ret in ptrace.RESTARTS and call.executed:
            call.ret = ret
            if changes is not None:
                self._saboteur.restarted(call, changes)
                if changes.argument is not None:
                    ptrace.poke(tracee.tid, ptrace.RDX, changes.argument)
            self._emit(call)
            return
        if call.executed:
            call.leave(ret)
        injections: list[Injection] = []
        seen = call.ret
        if changes is not None:
            injections = self._saboteur.leave(call, changes)
            if changes.argument is not None:
                ptrace.poke(tracee.tid, ptrace.RDX, changes.argument)
            if changes.result is not None:
                seen = changes.result
                ptrace.poke(tracee.tid, ptrace.RAX, seen)
        if call.sev_id is not None and seen == 0:
            injections += self._saboteur.released(call)
        self._emit(call)
        self._learn(tracee, call, seen or 0)
        if injections:
            injecting = Injecting(call, injections, tracee.process.descriptors)
            if injecting.start():
                tracee.injecting = injecting

    def _injected(self, tracee: Tracee, injecting: Injecting, ret: int) -> None:
        if ret in ptrace.RESTARTS:
            return
        call, another = injecting.ended(ret)
        if call is not None:
            self._emit(call)
        if not another:
            tracee.injecting = None

    def _emit(self, call: Call) -> None:
        self.events += 1
        self._journal.event(call)
        if call.sev_id is not None:
            self._flush_soon = True

    def _learn(self, tracee: Tracee, call: Call, seen: int) -> None:
        """What a finished call says about the VMM."""
        process, ret = tracee.process, call.ret or 0
        if call.request == kvm.KVM_CREATE_VM and ret >= 0 and call.executed:
            process.descriptors.created_vm(ret)
            process.live.discard(ret)
        elif call.request == kvm.KVM_CREATE_VCPU and ret >= 0 and call.executed:
            process.descriptors.created_vcpu(call.fd, ret, call.arg)
            process.waiting[call.fd, call.arg] = tracee.tid
            self._journal.milestone({"vcpu": call.arg})
            if self._trace:
                self._unwatched = True
                if call.fd in process.live:  # a hot-plugged one
                    tracee.resume = ptrace.SYSCALL
        elif call.request == kvm.KVM_SET_CLOCK:
            self._follow(process, tracee)
        elif call.sev_id in (_UPDATE_VMSA, _FINISH) and seen == 0:
            process.live.add(call.fd)
            if call.sev_id == _FINISH:
                self._journal.milestone({"finish": True})
                self._follow(process, tracee)
        elif ret == -errno.EBADF:
            process.descriptors.closed(call.fd)

    # The first KVM_RUN of each vCPU

    def _run_entry(self, tracee: Tracee, fd: int) -> None:
        process = tracee.process
        descriptor = process.descriptors.at(signed(fd), kvm.KVM_RUN)
        vcpu = descriptor.vm, descriptor.vcpu if descriptor.vcpu is not None else -1
        if vcpu in process.waiting:
            now, pid = time.monotonic_ns(), process.pid
            call = Call(now, pid, tracee.tid, signed(fd), kvm.KVM_RUN, 0, process.memory)
            call.descriptor = descriptor
            self._emit(call)
            self._first_run(process, vcpu)
        if not self._trace:
            tracee.skip_exit = True
        elif tracee.tid not in process.waiting.values():
            tracee.resume = ptrace.CONT

    def _first_run(self, process: Process, vcpu: tuple[Optional[int], int]) -> None:
        del process.waiting[vcpu]
        process.live.add(vcpu[0])
        self.ran.add(vcpu[1])
        self._journal.milestone({"run": vcpu[1]})
        if self._trace and not process.waiting:
            for tracee in [tracee for tracee in self._tracees.values() if tracee.process is process]:
                tracee.resume = ptrace.CONT

    def _follow(self, process: Process, holder: Optional[Tracee]) -> None:
        """Stop the threads that own a vCPU, and see their system calls until each vCPU has run.

        `holder`, which is about to let them run, waits until they have stopped.
        """
        if not self._trace:
            return
        owners = set(process.waiting.values())
        if len(owners) < len(process.waiting) or process.pid in owners:  # who will run them is not known
            owners = {tid for tid, tracee in self._tracees.items() if tracee.process is process}
            process.follow_new = True
        for tid in owners:
            tracee = self._tracees.get(tid)
            if tracee is not None and tracee is holder:
                tracee.resume = ptrace.SYSCALL
            elif tracee is not None and tracee.resume == ptrace.CONT and ptrace.interrupt(tid):
                self._asked.add(tid)
        if self._asked and holder is not None:
            self._held = holder.tid
        self._unwatched = False

    def _stopped_as_asked(self, tracee: Tracee) -> None:
        self._asked.discard(tracee.tid)
        if tracee.process.waiting:
            tracee.resume = ptrace.SYSCALL
        self._release()

    def _release(self) -> None:
        """Let the thread go on that waited for the others, once none is left."""
        if self._held is None or self._asked:
            return
        holder, self._held = self._tracees.get(self._held), None
        if holder is not None:
            self._resume_from(holder)

    def _nothing_happens(self) -> None:
        """A VMM that gives no sign before it lets its vCPUs run: watch from now on."""
        self._unwatched = False
        for process in self._processes.values():
            self._follow(process, None)
