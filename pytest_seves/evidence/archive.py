# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence of one launch as one file: a ZIP archive."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterable

from pytest_seves.text import plain

from .launch import Launch, Output

#: Of every member: the same evidence gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def members(launch: Launch) -> dict[str, bytes]:
    """Files by name: ``.raw`` and ``.jsonl`` as recorded, ``.txt`` for people, escaped."""
    about = {
        "host": launch.host,
        "argv": launch.argv,
        "exit": str(launch.exit),
        "phase": launch.phase,
        "mode": launch.timeline.mode,
        "dropped": {name: _output(launch, name).dropped for name in ("console", "stdout", "stderr")},
    }
    files = {
        "launch.json": json.dumps(about, indent=2).encode() + b"\n",
        "timeline.jsonl": zlib.decompress(launch.recording_z),
        "timeline.txt": _text(map(str, launch.timeline.recorded)),
        "qmp.txt": _text(map(str, launch.qmp.exchanges)),
    }
    for name in ("console", "stdout", "stderr"):
        output = _output(launch, name)
        files[f"{name}.raw"] = output.head + output.tail
        files[f"{name}.txt"] = _text([output.text])
    if launch.gdb.exchanges:
        files["gdb.txt"] = _text(f"{sent} -> {answer}" for sent, answer in launch.gdb.exchanges)
    files.update({f"dump-{number}.elf": dump for number, dump in enumerate(launch.dumps, 1)})
    return files


def archive(launch: Launch) -> bytes:
    """The ZIP archive; no member leaves the directory that it is unpacked in."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members(launch).items():
            zipped.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _output(launch: Launch, name: str) -> Output:
    output: Output = getattr(launch, name)
    return output


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{plain(line)}\n" for line in lines).encode()
