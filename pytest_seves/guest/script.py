# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent is to say to a VMM during a launch, as it goes over the wire.

The agent has the conversation (:mod:`pytest_seves.agent.conversation`), with a QMP client and a debugger of
its own: QEMU's qemu.qmp is no part of the standard library, which is all that a host must have. So a launch
costs one round trip, whatever is asked and done.
"""

from __future__ import annotations

import json
from typing import Any

from . import qemu
from .spec import GuestSpec
from .steps import Await, Console, Dump, Gdb, Qmp, Repeat, Step, Type, hmp

#: Asked of every guest, before it runs (when it was started paused) and while it runs.
QUESTIONS = ("query-status", "query-sev", "query-sev-launch-measure", "query-sev-capabilities")


def script(spec: GuestSpec) -> dict[str, Any]:
    """The whole conversation that `spec` wants."""
    return {
        "questions": [_command(Qmp(question)) for question in QUESTIONS],
        "paused": spec.paused,
        "paused_steps": [wire for step in spec.paused_steps for wire in _wire(step)],
        "steps": [wire for step in spec.steps for wire in _wire(step)],
        "ends": spec.ends,
    }


def _wire(step: Step) -> list[dict[str, Any]]:
    if isinstance(step, Gdb):
        return [_command(hmp(qemu.START_GDBSTUB)), {"do": "gdb", "packets": list(step.packets)}]
    if isinstance(step, Repeat):
        return [{"do": "repeat", "commands": [_command(one) for one in step.steps], "times": step.times}]
    if isinstance(step, Dump):
        return [{"do": "dump", "begin": step.begin, "length": step.length}]
    if isinstance(step, Console):
        wanted = {"pattern": step.pattern, "timeout_s": step.timeout_s, "fresh": step.fresh}
        return [{"do": "console", **wanted}]
    if isinstance(step, Type):
        return [{"do": "type", "text": step.text}]
    if isinstance(step, Await):
        return [{"do": "await", "events": list(step.events), "timeout_s": step.timeout_s}]
    return [_command(step)]


def _command(step: Qmp) -> dict[str, Any]:
    arguments = json.loads(step.arguments)
    return {"do": "qmp", "command": step.command, "arguments": arguments, "until": list(step.until)}
