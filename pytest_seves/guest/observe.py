# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch a guest, ask its VMM about it, end it, and bring home the evidence.

The guest is only observed: nothing is written to it, and nothing of it is left when this returns. A VMM
that exits, hangs or talks nonsense is not an error here: it is what the evidence then shows.
"""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.gdb import GdbTranscript
from pytest_seves.evidence.launch import Exit, Launch, Output
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.evidence.timeline import Timeline

from . import qemu
from .conversation import END_GRACE_S, Conversation
from .faults import Rule
from .spec import GuestSpec
from .steps import Repeat

if TYPE_CHECKING:
    from pytest_seves.host.client import AgentClient

#: Bytes that the agent keeps of what is said, and further ones for each repeated command.
_KEPT = 1 << 20
_KEPT_EACH = 8 << 10
_DEFAULT = GuestSpec()
#: For a VMM that did not play along to end by itself.
_STUCK_S = 2.0


def observe(
    client: AgentClient,
    argv: Sequence[str],
    *,
    host: str,
    spec: GuestSpec = _DEFAULT,
    timeout_s: float = 60.0,
    **request: Any,
) -> Launch:
    """Launch `argv` under the recorder, observe it until its vCPUs run, take `spec`'s steps, and end it.

    :param spec: what `argv` was made from; a VMM started paused is continued after the first questions.
    :param timeout_s: for the whole launch; a VMM that is not done by then is killed, on the host.
    :param request: as of :func:`begin`.
    :raise RigError: our side failed; never for anything that the VMM did.
    """
    with begin(client, argv, spec=spec, timeout_s=timeout_s, **request) as begun:
        left = max(begun.deadline - time.monotonic(), 0.1)
        collected = client.call(
            "collect",
            {"launch": begun.number, "timeout_s": min(left, _STUCK_S if begun.phase else END_GRACE_S)},
            timeout_s=timeout_s + END_GRACE_S,
        )
    said = {"phase": begun.phase, "dumps": tuple(begun.dumps)}
    return _launch(collected, argv=tuple(argv), host=host, **said)


@contextmanager
def begin(
    client: AgentClient,
    argv: Sequence[str],
    *,
    rules: Sequence[Rule] = (),
    qmp_rules: Sequence[Rule] = (),
    spec: GuestSpec = _DEFAULT,
    timeout_s: float,
    mode: str = "auto",
    side_by_side: int | None = None,
) -> Iterator[Conversation]:
    """Launch it and have the conversation that `spec` wants, which has ended when this is entered.

    :param rules: sabotage rules for the recorder, faults and defects alike.
    :param qmp_rules: sabotage of the QMP conversation (:mod:`pytest_seves.agent.qmp_sabotage`).
    :param mode: how to record, ``auto``, ``trace`` or ``stop``.
    :param side_by_side: how many guests may run on the host at a time; None: any number.
    """
    steps = (*spec.paused_steps, *spec.steps)
    repeated = sum(step.times * len(step.steps) for step in steps if isinstance(step, Repeat))
    request = {
        "argv": list(argv),
        "rules": [dict(rule) for rule in rules],
        "qmp_rules": [dict(rule) for rule in qmp_rules],
        "gdb": spec.debugged,
        "unwatched": qemu.UNWATCHED_THREADS,
        "mode": mode,
        "side_by_side": side_by_side,
        "memory_mib": spec.memory_mib,
        "timeout_s": timeout_s,
        "limit": _KEPT + _KEPT_EACH * repeated,
    }
    number = client.call("launch", request, timeout_s=3 * timeout_s)["launch"]
    deadline = time.monotonic() + timeout_s
    with client.stream(f"{number}.qmp") as qmp:
        conversation = Conversation(client, number, deadline)
        work = conversation.hold(qmp, spec)
        # A thread of its own: the caller may be inside an event loop already.
        with ThreadPoolExecutor(1, thread_name_prefix="qmp") as pool:
            pool.submit(asyncio.run, work).result()
        yield conversation


def _launch(collected: dict[str, Any], *, argv: tuple[str, ...], host: str, **said: Any) -> Launch:
    if collected.get("error") or collected.get("timeline_dropped"):
        what = collected.get("error") or f"{collected['timeline_dropped']} lines of the timeline were dropped"
        raise EvidenceError(
            f"{host}: {argv[0]} was not recorded to its end: {what}. Nothing is concluded from a part.",
            argv=argv,
        )
    try:
        recording_z = base64.b64decode(collected["timeline_z"])
        timeline = Timeline.from_jsonl(zlib.decompress(recording_z))
        transcript = QmpTranscript.from_chunks(_chunks(collected["qmp"]))
        ended = collected["exit"]
        return Launch(
            host=host,
            argv=argv,
            timeline=timeline,
            recording_z=recording_z,
            qmp=transcript,
            gdb=GdbTranscript.from_chunks(_chunks(collected["gdb"])),
            console=_output(collected["console"]),
            stdout=_output(collected["stdout"]),
            stderr=_output(collected["stderr"]),
            exit=Exit(ended.get("status"), ended.get("signal"), bool(collected.get("killed"))),
            **said,
        )
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise EvidenceError(
            f"{host}: what the agent collected cannot be read: {type(error).__name__}: {error}",
            collected=collected,
        ) from error


def _chunks(recorded: Sequence[Sequence[Any]]) -> list[tuple[int, str, str]]:
    return [(int(time_ns), str(way), str(text)) for time_ns, way, text in recorded]


def _output(record: dict[str, Any]) -> Output:
    return Output(base64.b64decode(record["head"]), base64.b64decode(record["tail"]), int(record["dropped"]))
