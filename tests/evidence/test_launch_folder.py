# SPDX-License-Identifier: GPL-2.0-or-later
"""A launch as files, and the same launch again."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_seves.errors import EvidenceError
from pytest_seves.evidence.gdb import GdbTranscript
from pytest_seves.evidence.launch import Exit, Launch, Output, Usage
from pytest_seves.evidence.launch_folder import derived_files, fields, launch_of, raw_files
from pytest_seves.evidence.qmp import Exchange, QmpTranscript
from tests.evidence import bundles

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(ANY_TEXT, JSON, max_size=3)
TIME = st.integers(0, 1 << 63)
OUTPUT = st.builds(Output, st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 1 << 40))
EXCHANGE = st.builds(Exchange, ANY_TEXT, OBJECT, TIME, st.none() | TIME, JSON, st.none() | OBJECT)
QMP = st.builds(
    QmpTranscript,
    st.none() | OBJECT,
    st.lists(EXCHANGE, max_size=3).map(tuple),
    st.lists(st.tuples(TIME, OBJECT), max_size=3).map(tuple),
    st.lists(st.tuples(TIME, ANY_TEXT), max_size=3).map(tuple),
)
GDB = st.builds(
    GdbTranscript, st.lists(st.tuples(ANY_TEXT, st.none() | ANY_TEXT), max_size=3).map(tuple), ANY_TEXT
)
COUNT = st.integers(0, 1 << 20)
USAGE = st.builds(Usage, COUNT, COUNT, COUNT)
EXIT = st.builds(Exit, COUNT, st.none(), st.booleans()) | st.builds(
    Exit, st.none(), st.integers(1, 31), st.booleans()
)


def again(launch: Launch) -> Launch:
    """The launch after it was files."""
    files = raw_files(launch)
    manifest = json.loads(json.dumps({**fields(launch), "files": dict.fromkeys(files)}))
    return launch_of(manifest, files.__getitem__, folder=launch.folder)


@given(
    st.fixed_dictionaries(
        {
            "argv": st.lists(ANY_TEXT, max_size=4).map(tuple),
            "qmp": QMP,
            "gdb": GDB,
            "console": OUTPUT,
            "stdout": OUTPUT,
            "stderr": OUTPUT,
            "exit": EXIT,
            "phase": ANY_TEXT,
            "dumps": st.lists(st.binary(max_size=40), max_size=3).map(tuple),
            "usage": st.none() | st.tuples(USAGE, USAGE),
        }
    )
)
def test_a_launch_comes_back_as_it_was(given: dict[str, Any]) -> None:
    """Whatever a VMM, a guest or a debugger said; the recording may be packed in another way."""
    launch = bundles.launch(**given)
    back = again(launch)
    assert zlib.decompress(back.recording_z) == zlib.decompress(launch.recording_z)
    assert replace(back, recording_z=launch.recording_z) == launch
    for content in derived_files(launch).values():
        shown = content.decode("utf-8")
        assert all(char.isprintable() or char in "\n\t" for char in shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exit", {"status": None, "signal": 999}),
        ("exit", {"status": 0, "signal": None, "more": 1}),
        ("outputs", {"console": {"head": 1 << 40, "dropped": 0}}),
        ("usage", [{"sev": 1}]),
        ("dumps", "1"),
    ],
)
def test_a_manifest_with_a_wrong_part_is_refused(name: str, value: object) -> None:
    """No signal has such a number, and no file has so many bytes."""
    launch = bundles.launch()
    files = raw_files(launch)
    with pytest.raises(EvidenceError, match=r"the launch cannot be read: \w+Error: "):
        launch_of({**fields(launch), "files": files, name: value}, files.__getitem__)


@pytest.mark.parametrize("missing", ["usage", "exit", "outputs", "dumps"])
def test_a_manifest_without_a_part_is_refused(missing: str) -> None:
    """What is missing is named."""
    launch = bundles.launch()
    files = raw_files(launch)
    manifest = {**fields(launch), "files": files}
    del manifest[missing]
    with pytest.raises(EvidenceError, match=f"the launch cannot be read: KeyError: '{missing}'"):
        launch_of(manifest, files.__getitem__)
