# SPDX-License-Identifier: GPL-2.0-or-later
"""One launch as files: what it left behind, exactly, and the same once more for people. No I/O."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pytest_seves.errors import EvidenceError
from pytest_seves.text import one_line, plain

from .folder import json_file
from .gdb import GdbTranscript
from .launch import Exit, Launch, Output, Usage
from .qmp import Exchange, QmpTranscript
from .timeline import Timeline

OUTPUTS = ("console", "stdout", "stderr")
#: As fast as it gets: the recording is compressed to be held in memory.
_LEVEL = 1


def fields(launch: Launch) -> dict[str, Any]:
    """What is no file of its own: the manifest's part that :func:`launch_of` reads."""
    outputs = {name: getattr(launch, name) for name in OUTPUTS}
    return {
        "host": launch.host,
        "argv": list(launch.argv),
        "exit": asdict(launch.exit),
        "phase": launch.phase,
        "usage": [asdict(held) for held in launch.usage] if launch.usage else None,
        "outputs": {name: {"head": len(o.head), "dropped": o.dropped} for name, o in outputs.items()},
        "dumps": len(launch.dumps),
    }


def raw_files(launch: Launch) -> dict[str, bytes]:
    """Files, by name, that hold the rest exactly."""
    found = {
        "timeline.jsonl": zlib.decompress(launch.recording_z),
        "qmp.json": json_file(asdict(launch.qmp)),
    }
    if launch.gdb != GdbTranscript():
        found["gdb.json"] = json_file(asdict(launch.gdb))
    for name in OUTPUTS:
        output: Output = getattr(launch, name)
        found[f"{name}.raw"] = output.head + output.tail
    for number, dump in enumerate(launch.dumps, 1):
        found[f"dump-{number}.elf"] = dump
    return found


def derived_files(launch: Launch) -> dict[str, bytes]:
    """Files, by name, for people: no character in them does anything to a terminal."""
    found = {
        "timeline.txt": "".join(f"{one_line(str(event))}\n" for event in launch.timeline.recorded),
        "qmp.txt": "".join(f"{one_line(str(exchange))}\n" for exchange in launch.qmp.exchanges),
        **{f"{name}.txt": plain(getattr(launch, name).text) for name in OUTPUTS},
    }
    if launch.gdb.exchanges:
        found["gdb.txt"] = "".join(f"{one_line(f'{s} -> {a}')}\n" for s, a in launch.gdb.exchanges)
    return {name: text.encode("utf-8") for name, text in found.items()}


def launch_of(manifest: Mapping[str, Any], read: Callable[[str], bytes], *, folder: str = "") -> Launch:
    """The launch again.

    :param manifest: has at least what :func:`fields` gave.
    :param read: gives the content of one of the :func:`raw_files`.
    :raise EvidenceError: something is missing or of the wrong kind.
    """
    recording = read("timeline.jsonl")
    try:
        usage = manifest["usage"]
        ended = Exit(**manifest["exit"])
        str(ended)  # there is no signal of every number
        return Launch(
            host=str(manifest["host"]),
            argv=tuple(map(str, manifest["argv"])),
            timeline=Timeline.from_jsonl(recording),
            recording_z=zlib.compress(recording, _LEVEL),
            qmp=_qmp(json.loads(read("qmp.json"))),
            gdb=_gdb(json.loads(read("gdb.json"))) if "gdb.json" in manifest["files"] else GdbTranscript(),
            **{name: _output(manifest["outputs"][name], read(f"{name}.raw")) for name in OUTPUTS},
            exit=ended,
            phase=str(manifest["phase"]),
            dumps=tuple(read(f"dump-{number}.elf") for number in range(1, manifest["dumps"] + 1)),
            usage=None if usage is None else (Usage(**usage[0]), Usage(**usage[1])),
            folder=folder,
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise EvidenceError(f"the launch cannot be read: {type(error).__name__}: {error}") from error


def _qmp(record: Mapping[str, Any]) -> QmpTranscript:
    return QmpTranscript(
        greeting=record["greeting"],
        exchanges=tuple(Exchange(**exchange) for exchange in record["exchanges"]),
        events=tuple((time_ns, event) for time_ns, event in record["events"]),
        noise=tuple((time_ns, text) for time_ns, text in record["noise"]),
    )


def _gdb(record: Mapping[str, Any]) -> GdbTranscript:
    pairs = tuple((sent, answer) for sent, answer in record["exchanges"])
    return GdbTranscript(pairs, str(record["nonsense"]))


def _output(record: Mapping[str, Any], raw: bytes) -> Output:
    head = int(record["head"])
    if not 0 <= head <= len(raw):
        raise ValueError(f"wanted {head} bytes and more, got {len(raw)}")
    return Output(raw[:head], raw[head:], int(record["dropped"]))
