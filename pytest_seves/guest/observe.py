# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch a guest, ask its VMM about it, end it, and bring home the evidence.

The guest is only observed: nothing is written to it, and nothing of it is left when this returns. A VMM
that exits, hangs or talks nonsense is not an error here: it is what the evidence then shows.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import time
import zlib
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.launch import Exit, Launch, Output
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.evidence.timeline import Timeline

from .faults import Rule

if TYPE_CHECKING:
    from pytest_seves.host.client import AgentClient

#: Asked of every guest, before it runs (when it was started paused) and while it runs.
QUESTIONS = ("query-status", "query-sev", "query-sev-launch-measure", "query-sev-capabilities")
_QUIT_GRACE_S = 10.0
_T = TypeVar("_T")


def observe(
    client: AgentClient,
    argv: Sequence[str],
    *,
    host: str,
    rules: Sequence[Rule] = (),
    paused: bool = False,
    timeout_s: float = 60.0,
    mode: str = "auto",
) -> Launch:
    """Launch `argv` under the recorder, observe it until its vCPUs run, and quit it.

    :param rules: sabotage rules for the recorder, faults and defects alike.
    :param paused: the VMM was told to start stopped; it is continued after the first questions.
    :param timeout_s: for the whole launch; a VMM that is not done by then is killed, on the host.
    :param mode: how to record, ``auto``, ``trace`` or ``stop``.
    :raise RigError: our side failed; never for anything that the VMM did.
    """
    deadline = time.monotonic() + timeout_s
    request = {
        "argv": list(argv),
        "rules": [dict(rule) for rule in rules],
        "mode": mode,
        "timeout_s": timeout_s,
    }
    number = client.call("launch", request, timeout_s=timeout_s)["launch"]
    with client.stream(f"{number}.qmp") as qmp:
        conversation = _Conversation(client, number, qmp, deadline)
        # A thread of its own: the caller may be inside an event loop already.
        with ThreadPoolExecutor(1, thread_name_prefix="qmp") as pool:
            pool.submit(asyncio.run, conversation.hold(paused)).result()
        left = max(deadline - time.monotonic(), 0.1)
        collected = client.call(
            "collect",
            {"launch": number, "timeout_s": min(left, _QUIT_GRACE_S)},
            timeout_s=timeout_s + _QUIT_GRACE_S,
        )
    return _launch(collected, argv=tuple(argv), host=host, phase=conversation.phase)


class _Conversation:
    """Questions to one VMM over QMP; `phase` names what was under way when the VMM did not play along."""

    def __init__(self, client: AgentClient, number: int, qmp: socket.socket, deadline: float) -> None:
        self._client = client
        self._number = number
        self._socket = qmp
        self._deadline = deadline
        self.phase = "waiting for the QMP greeting"

    async def hold(self, paused: bool) -> None:
        """Ask, let it run, ask again, quit."""
        peer = QMPClient(f"launch-{self._number}")
        peer.logger.setLevel(logging.CRITICAL)  # a VMM that dies is evidence, not news for the log
        try:
            await self._within(peer.connect(self._socket))
            if paused:
                await self._ask(peer)
                await self._execute(peer, "cont")
            self.phase = "waiting for every vCPU to run"
            if await asyncio.to_thread(self._running):
                await self._ask(peer)
                await self._execute(peer, "quit")
                self.phase = ""
        except (TimeoutError, QMPError, OSError, EOFError):
            return  # phase says what was under way; the transcript and the exit say the rest
        finally:
            await self._goodbye(peer)

    async def _ask(self, peer: QMPClient) -> None:
        for question in QUESTIONS:
            await self._execute(peer, question)

    async def _execute(self, peer: QMPClient, command: str) -> None:
        self.phase = f"executing {command}"
        try:
            await self._within(peer.execute(command))
        except ExecuteError:
            return  # an answer like any other: the transcript holds it
        except ExecInterruptedError:
            if command != "quit":  # QEMU may close before it has answered quit
                raise

    def _running(self) -> bool:
        left = max(self._deadline - time.monotonic(), 0.1)
        request = {"launch": self._number, "until": "running", "timeout_s": left}
        return bool(self._client.call("wait", request, timeout_s=left + _QUIT_GRACE_S)["reached"])

    async def _within(self, work: Awaitable[_T]) -> _T:
        return await asyncio.wait_for(work, max(self._deadline - time.monotonic(), 0.1))

    async def _goodbye(self, peer: QMPClient) -> None:
        try:
            await asyncio.wait_for(peer.disconnect(), _QUIT_GRACE_S)
        except (TimeoutError, QMPError, OSError, EOFError):
            return  # it was a goodbye to a VMM that had gone first


def _launch(collected: dict[str, Any], *, argv: tuple[str, ...], host: str, phase: str) -> Launch:
    if collected.get("error") or collected.get("timeline_dropped"):
        what = collected.get("error") or f"{collected['timeline_dropped']} lines of the timeline were dropped"
        raise EvidenceError(
            f"{host}: {argv[0]} was not recorded to its end: {what}. Nothing is concluded from a part.",
            argv=argv,
        )
    try:
        recording_z = base64.b64decode(collected["timeline_z"])
        timeline = Timeline.from_jsonl(zlib.decompress(recording_z))
        transcript = QmpTranscript.from_chunks(
            [(int(t), str(way), str(text)) for t, way, text in collected["qmp"]]
        )
        ended = collected["exit"]
        return Launch(
            host=host,
            argv=argv,
            timeline=timeline,
            recording_z=recording_z,
            qmp=transcript,
            console=_output(collected["console"]),
            stdout=_output(collected["stdout"]),
            stderr=_output(collected["stderr"]),
            exit=Exit(ended.get("status"), ended.get("signal"), bool(collected.get("killed"))),
            phase=phase,
        )
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise EvidenceError(
            f"{host}: what the agent collected cannot be read: {type(error).__name__}: {error}",
            collected=collected,
        ) from error


def _output(record: dict[str, Any]) -> Output:
    return Output(base64.b64decode(record["head"]), base64.b64decode(record["tail"]), int(record["dropped"]))
