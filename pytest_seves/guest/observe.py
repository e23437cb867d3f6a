# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch a guest, ask its VMM about it, end it, and bring home the evidence.

The guest is only observed: nothing is written to it, and nothing of it is left when this returns. A VMM
that exits, hangs or talks nonsense is not an error here: it is what the evidence then shows.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import EvidenceError, Unsupported
from pytest_seves.evidence.gdb import GdbTranscript
from pytest_seves.evidence.launch import Exit, Launch, Output, Usage
from pytest_seves.evidence.qmp import QmpTranscript
from pytest_seves.evidence.timeline import Timeline

from . import qemu
from .faults import Rule
from .script import script
from .spec import GuestSpec
from .steps import Repeat

if TYPE_CHECKING:
    from pytest_seves.host.client import AgentClient

#: Bytes that the agent keeps of what is said, and further ones for each repeated command.
_KEPT = 1 << 20
_KEPT_EACH = 8 << 10
_DEFAULT = GuestSpec()
_ENDING_S = 30.0


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
    :param request: `rules` for the recorder, faults and defects alike; `qmp_rules`, sabotage of the QMP
        conversation (:mod:`pytest_seves.agent.qmp_sabotage`); `mode`, how to record: ``auto``, ``trace`` or
        ``stop``; `side_by_side`, how many guests may run on the host at a time, None for any number; `usage`:
        count what guests hold of the host before and after, which takes being alone on it; `files` that the
        agent has not yet.
    :raise RigError: our side failed; never for anything that the VMM did.
    """
    asked = _request(argv, spec=spec, timeout_s=timeout_s, **request)
    collected = client.ahead.call("observe", asked, _patience(timeout_s))
    said = {"phase": collected["phase"], "dumps": tuple(map(base64.b64decode, collected["dumps"]))}
    if collected["usage"] is not None:
        said["usage"] = tuple(_usage(host, told) for told in collected["usage"])
    return _launch(collected, argv=tuple(argv), host=host, **said)


def begin(
    client: AgentClient, argv: Sequence[str], *, spec: GuestSpec, timeout_s: float, **request: Any
) -> dict[str, Any]:
    """Launch what `spec` never ends, and have the conversation: its number, its phase and what time it has.

    :param request: as of :func:`observe`.
    """
    asked = _request(argv, spec=spec, timeout_s=timeout_s, **request)
    return client.call("observe", asked, timeout_s=_patience(timeout_s))


def _patience(timeout_s: float) -> float:
    """For a turn, for a place, for the launch, and for what follows its end."""
    return 3 * timeout_s + _ENDING_S


def _request(
    argv: Sequence[str],
    *,
    rules: Sequence[Rule] = (),
    qmp_rules: Sequence[Rule] = (),
    spec: GuestSpec,
    timeout_s: float,
    mode: str = "auto",
    side_by_side: int | None = None,
    usage: bool = False,
    files: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    steps = (*spec.paused_steps, *spec.steps)
    repeated = sum(step.times * len(step.steps) for step in steps if isinstance(step, Repeat))
    return {
        "argv": list(argv),
        "files": list(files),
        "script": script(spec),
        "rules": [dict(rule) for rule in rules],
        "qmp_rules": [dict(rule) for rule in qmp_rules],
        "gdb": spec.debugged,
        "unwatched": qemu.UNWATCHED_THREADS,
        "mode": mode,
        "side_by_side": side_by_side,
        "memory_mib": spec.memory_mib,
        "usage": usage,
        "timeout_s": timeout_s,
        "limit": _KEPT + _KEPT_EACH * repeated,
    }


def _usage(host: str, told: dict[str, Any]) -> Usage:
    if None in told.values():
        raise Unsupported(
            f"{host}: this host does not tell what guests hold of it: {told}. ASIDs need the "
            "misc controller (CONFIG_CGROUP_MISC), the firmware's guest count needs /dev/sev"
        )
    return Usage(**told)


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
