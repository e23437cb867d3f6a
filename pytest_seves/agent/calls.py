# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct KVM and SEV calls, without a VMM: one program (:mod:`pytest_seves.agent.program`), one round trip.

Runs in a forked child of the agent: it may crash or block, and whatever a program left open ends with it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
from typing import Any, Callable, Dict, List, Optional

from pytest_seves.agent import facts
from pytest_seves.agent.program import PAGE, Step
from pytest_seves.spec import kvm, sev

_IMMEDIATE_EXIT, _EXIT_REASON = 1, 8  # offsets in struct kvm_run

Answer = Dict[str, Any]


def run(args: Dict[str, Any]) -> Dict[str, Any]:
    """Run the checked ``program``: ``{"answers": [...]}``, one for each step.

    An answer has ``result`` (negative: -errno), ``errno`` (its name, or None), and, by kind of step, ``out``
    (bytes in hex), ``firmware`` (status code; NO_FIRMWARE_CALL where nobody wrote one), ``exit_reason``,
    ``kicked``, ``values``. A step that was not run has ``not_run`` alone: the number of the step that was
    refused.
    """
    machine = _Machine()
    answers: List[Answer] = []
    ended_by: Optional[int] = None
    for number, step in enumerate(args["program"]):
        cause = machine.missing(step) if ended_by is None else ended_by
        if cause is not None:
            answers.append({"not_run": cause})
            machine.not_made(step, cause)
            continue
        answer = machine.do(step)
        answers.append(answer)
        if answer["result"] < 0:
            machine.not_made(step, number)
            ended_by = number if step.get("needed") else None
    return {"answers": answers}


class _Machine:
    """What the program has made so far; a name that a refused step was to make holds that step's number."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptors: Dict[str, int] = {}
        self._memory: Dict[str, mmap.mmap] = {}
        self._causes: Dict[str, int] = {}
        self._run_pages: Dict[str, mmap.mmap] = {}
        self._steps: Dict[str, Callable[[Step], Answer]] = {
            "memory": self._map,
            "peek": self._peek,
            "open": self._open,
            "ioctl": self._ioctl,
            "sev": self._sev,
            "issue": self._issue,
            "run": self._run,
            "close": self._close,
            "misc": self._misc,
        }

    def missing(self, step: Step) -> Optional[int]:
        """The number of the step without whose descriptor this one cannot be run, if any."""
        names = (step[key] for key in ("on", "sev") if key in step)
        return next((self._causes[name] for name in names if name in self._causes), None)

    def not_made(self, step: Step, cause: int) -> None:
        """Note that what `step` was to make is missing because of step number `cause`."""
        if "as" in step:
            self._causes[step["as"]] = cause

    def do(self, step: Step) -> Answer:
        """Run one step."""
        self._causes.pop(step.get("as", ""), None)
        return self._steps[step["do"]](step)

    # Memory

    def _map(self, step: Step) -> Answer:
        memory = self._memory[step["as"]] = mmap.mmap(-1, step["size"])
        content = bytes.fromhex(step.get("hex", ""))
        memory[: len(content)] = content
        return _answer(0)

    def _peek(self, step: Step) -> Answer:
        start = step.get("offset", 0)
        return _answer(0, out=self._memory[step["of"]][start : start + step["size"]])

    def _structure(self, step: Step) -> Any:
        """A buffer with the step's bytes, and addresses where its pointers are."""
        buffer = ctypes.create_string_buffer(bytes.fromhex(step.get("hex", "")))
        for offset, name, inner in step.get("pointers", ()):
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory[name])) + inner
            struct.pack_into("<Q", buffer, offset, address)
        return buffer

    # Descriptors

    def _open(self, step: Step) -> Answer:
        try:
            self._descriptors[step["as"]] = os.open(step["path"], os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return _answer(-(error.errno or errno.EIO))
        return _answer(0)

    def _close(self, step: Step) -> Answer:
        page = self._run_pages.pop(step["on"], None)
        if page is not None:
            page.close()
        try:
            os.close(self._descriptors.pop(step["on"]))
        except OSError as error:
            return _answer(-(error.errno or errno.EIO))
        return _answer(0)

    def _call(self, name: str, request: int, argument: int) -> int:
        descriptor = self._descriptors[name]
        result: int = self._libc.ioctl(descriptor, ctypes.c_ulong(request), ctypes.c_ulong(argument))
        return result if result >= 0 else -ctypes.get_errno()

    def _ioctl(self, step: Step) -> Answer:
        if "hex" not in step:
            answer = _answer(self._call(step["on"], step["request"], step.get("arg", 0)))
        else:
            buffer = self._structure(step)
            result = self._call(step["on"], step["request"], ctypes.addressof(buffer))
            answer = _answer(result, out=buffer.raw[:-1])
        if "as" in step and answer["result"] >= 0:
            self._descriptors[step["as"]] = answer["result"]
        return answer

    def _sev(self, step: Step) -> Answer:
        data = self._structure(step) if "hex" in step else None
        command = ctypes.create_string_buffer(
            sev.KVM_SEV_CMD.encode(
                id=step["command"],
                data=ctypes.addressof(data) if data is not None else 0,
                error=sev.NO_FIRMWARE_CALL,
                sev_fd=self._descriptors[step["sev"]] if "sev" in step else 0,
            )
        )
        result = self._call(step["on"], kvm.KVM_MEMORY_ENCRYPT_OP, ctypes.addressof(command))
        (status,) = struct.unpack_from("<I", command, sev.KVM_SEV_CMD.field("error").offset)
        return {**_answer(result, out=data.raw[:-1] if data is not None else None), "firmware": status}

    def _issue(self, step: Step) -> Answer:
        data = self._structure(step)
        command = ctypes.create_string_buffer(
            sev.SEV_ISSUE_CMD_DATA.encode(
                cmd=step["command"], data=ctypes.addressof(data), error=sev.NO_FIRMWARE_CALL
            )
        )
        result = self._call(step["on"], sev.SEV_ISSUE_CMD, ctypes.addressof(command))
        (status,) = struct.unpack_from("<I", command, sev.SEV_ISSUE_CMD_DATA.field("error").offset)
        return {**_answer(result, out=data.raw[:-1]), "firmware": status}

    # Execution

    def _run(self, step: Step) -> Answer:
        page = self._run_page(step["on"])
        page[_IMMEDIATE_EXIT] = int(step["immediate_exit"])
        kicked = threading.Event()

        def kick() -> None:
            kicked.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        signal.signal(signal.SIGUSR1, lambda *_: None)  # caught: its arrival ends KVM_RUN with EINTR
        timer = threading.Timer(step["limit_s"], kick)
        timer.start()
        result = self._call(step["on"], kvm.KVM_RUN, 0)
        timer.cancel()
        timer.join()
        (reason,) = struct.unpack_from("<I", page, _EXIT_REASON)
        return {**_answer(result), "exit_reason": reason, "kicked": kicked.is_set()}

    def _run_page(self, name: str) -> mmap.mmap:
        if name not in self._run_pages:
            self._run_pages[name] = mmap.mmap(self._descriptors[name], PAGE)
        return self._run_pages[name]

    # The host

    @staticmethod
    def _misc(_: Step) -> Answer:
        return {**_answer(0), "values": facts.misc()["current"]}


def _answer(result: int, out: Optional[bytes] = None) -> Answer:
    name = errno.errorcode.get(-result, str(-result)) if result < 0 else None
    return {"result": result, "errno": name, **({} if out is None else {"out": out.hex()})}
