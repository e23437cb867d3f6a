# SPDX-License-Identifier: GPL-2.0-or-later
"""Launches: a VMM's descriptors, what it says, and how it ends. Small programs stand for the VMM."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
import zlib
from typing import Any

import pytest

from pytest_seves.agent.frames import encode

LocalAgent = Any


def launch(agent: LocalAgent, program: str, **options: Any) -> dict[str, Any]:
    """Start a Python program as the VMM."""
    argv = [sys.executable, "-c", program]
    reply = agent.call("launch", argv=argv, **{"mode": "stop", "timeout_s": 60, **options})
    result: dict[str, Any] = reply["ok"]
    return result


def collect(agent: LocalAgent, number: int = 1, timeout_s: float = 15) -> dict[str, Any]:
    """All that a launch left, its timeline as a list of events."""
    result: dict[str, Any] = agent.call("collect", launch=number, timeout_s=timeout_s)["ok"]
    packed = zlib.decompress(base64.b64decode(result.pop("timeline_z")))
    return {**result, "timeline": [json.loads(line) for line in packed.splitlines()]}


def said(kept: dict[str, Any]) -> bytes:
    """The bytes of a bounded stream that fits."""
    assert kept["dropped"] == 0
    return base64.b64decode(kept["head"]) + base64.b64decode(kept["tail"])


def test_a_program_that_is_not_there(agent: LocalAgent) -> None:
    """It cannot be executed: an error of that launch, no crash."""
    agent.call("launch", argv=["/no/such/vmm"], timeout_s=10)
    result = collect(agent)
    assert "/no/such/vmm" in result["error"]
    assert result["exit"] is None or result["exit"] == {"status": 127}


def test_a_bad_rule(agent: LocalAgent) -> None:
    """A sabotage rule that makes no sense ends the launch with the recorder's complaint."""
    launch(agent, "pass", rules=[{"name": "x", "action": "explode"}])
    result = collect(agent)
    assert "explode" in result["error"]


def test_a_recorder_that_dies(agent: LocalAgent) -> None:
    """A killed recorder is noticed at once, and the VMM with it."""
    pid = launch(agent, "import os, time; os.write(3, b'x'); time.sleep(600)")["pid"]
    agent.receive(lambda frame: "stream" in frame)
    waiting = agent.ask("wait", launch=1, until="exit", timeout_s=60)
    os.kill(pid, signal.SIGKILL)
    answer = agent.receive(lambda frame: frame.get("id") == waiting)["ok"]
    assert answer["reached"] is False
    assert "the recorder ended with {'signal': 9" in answer["error"]
    assert "the recorder ended" in collect(agent)["error"]


def test_a_vmm_that_never_ends(agent: LocalAgent) -> None:
    """Collecting kills it at the deadline and says so."""
    launch(agent, "import time; time.sleep(600)")
    start = time.monotonic()
    result = collect(agent, timeout_s=1)
    assert time.monotonic() - start < 5
    assert result["killed"] is True
    assert result["exit"]["signal"] == signal.SIGKILL
    assert result["timeline"][-1]["end"] is True


def test_the_deadline_of_a_launch(agent: LocalAgent) -> None:
    """A launch that nobody asks about ends at its own deadline."""
    launch(agent, "import time; time.sleep(600)", timeout_s=1)
    answer = agent.call("wait", launch=1, until="exit", timeout_s=20)["ok"]
    assert answer["exit"]["signal"] == signal.SIGKILL


def test_waiting_in_vain(agent: LocalAgent) -> None:
    """A wait ends at its deadline without ending the launch."""
    launch(agent, "import os; os.read(3, 1)")
    answer = agent.call("wait", launch=1, until="running", timeout_s=0.3)["ok"]
    assert answer == {"reached": False, "running": [], "exit": None}
    assert agent.call("kill", launch=1, signal=int(signal.SIGTERM))["ok"] == {"sent": True}
    assert collect(agent)["exit"] == {"signal": 15, "core": False}


def test_killing_what_has_ended(agent: LocalAgent) -> None:
    """There is nobody to send the signal to."""
    launch(agent, "pass")
    agent.call("wait", launch=1, until="exit", timeout_s=20)
    assert agent.call("kill", launch=1, signal=9)["ok"] == {"sent": False}


def test_collecting_twice(agent: LocalAgent) -> None:
    """What was collected is gone."""
    launch(agent, "pass")
    collect(agent)
    assert agent.call("collect", launch=1, timeout_s=1)["error"]["kind"] == "UnknownLaunch"


def test_descriptors(agent: LocalAgent) -> None:
    """The VMM has stdin from /dev/null, two pipes, two sockets, and nothing else."""
    program = (
        "import os\nfor n in range(100):\n"
        "    try: print(n, os.readlink(f'/proc/self/fd/{n}').split(':')[0])\n"
        "    except FileNotFoundError: pass"
    )
    launch(agent, program)
    listed = said(collect(agent)["stdout"]).decode()
    assert listed.splitlines() == ["0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 socket"]


def test_everything_it_said(agent: LocalAgent) -> None:
    """stdout, stderr, console and QMP come back, with the exit status and the timeline."""
    program = (
        "import os, sys; os.write(4, b'SeaBIOS'); print('out'); print('err', file=sys.stderr)\n"
        "os.write(3, b'{\"QMP\": {}}\\r\\n'); os.write(3, os.read(3, 100)); sys.exit(7)"
    )
    launch(agent, program, env={"EXTRA": "1"}, cwd="/")
    agent.send(encode({"stream": "1.qmp", "data": base64.b64encode(b'{"execute": "x"}\n').decode()}))
    result = collect(agent)
    assert result["exit"] == {"status": 7}
    assert said(result["stdout"]) == b"out\n"
    assert said(result["stderr"]) == b"err\n"
    assert said(result["console"]) == b"SeaBIOS"
    told = {way: "".join(text for _, to, text in result["qmp"] if to == way) for way in ("in", "out")}
    assert told == {"in": '{"execute": "x"}\n', "out": '{"QMP": {}}\r\n{"execute": "x"}\n'}
    assert [entry[0] for entry in result["qmp"]] == sorted(entry[0] for entry in result["qmp"])
    assert result["timeline"][0]["format"] == "seves-timeline/1"
    assert result["timeline"][-1]["exit"] == {"status": 7}
    assert (result["error"], result["killed"]) == (None, False)


def test_the_streams_end_is_told(agent: LocalAgent) -> None:
    """When the VMM goes, its QMP stream ends."""
    launch(agent, "pass")
    assert agent.receive(lambda frame: frame.get("stream") == "1.qmp") == {"stream": "1.qmp", "eof": True}


@pytest.mark.parametrize("fd", [1, 2, 4], ids=["stdout", "stderr", "console"])
def test_floods_are_bounded(agent: LocalAgent, fd: int) -> None:
    """More than the limit is counted, not kept, and holds nobody up."""
    program = (
        f"import os\nfor n in range(128):\n    data = bytes([n]) * 65536\n"
        f"    while data:\n        data = data[os.write({fd}, data):]"
    )
    launch(agent, program, limit=1 << 20)
    kept = collect(agent)[{1: "stdout", 2: "stderr", 4: "console"}[fd]]
    assert kept["dropped"] == 7 << 20
    assert base64.b64decode(kept["head"]) == b"".join(bytes([n]) * 65536 for n in range(8))
    assert base64.b64decode(kept["tail"]) == b"".join(bytes([n]) * 65536 for n in range(120, 128))


def test_several_launches_at_once(agent: LocalAgent) -> None:
    """Launches do not mix."""
    for n in range(4):
        launch(agent, f"import os; os.write(4, b'{n}'); raise SystemExit({n})")
    for n in range(4):
        result = collect(agent, n + 1)
        assert (said(result["console"]), result["exit"]) == (b"%d" % n, {"status": n})
