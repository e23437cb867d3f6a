# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's conversation: nonsense, deadlines, ends."""

from __future__ import annotations

import base64
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_seves.agent.frames import MAGIC, encode
from tests.agent.standing import QUIET, Standing

LocalAgent = Any
QUICK = {"script": QUIET, "timeout_s": 5}

Stand = Callable[..., Standing]


def launched(agent: LocalAgent, vmm: Standing) -> list[int]:
    """pidfds of a launch that would last for ever, and of its recorder, once the VMM runs."""
    agent.ask("observe", **vmm.request)
    return [os.pidfd_open(pid) for pid in vmm.pids()]


def are_gone(pidfds: list[int]) -> bool:
    """Whether the processes have ended."""
    ready = [select.select([pidfd], [], [], 5)[0] for pidfd in pidfds]
    for pidfd in pidfds:
        os.close(pidfd)
    return all(ready)


@pytest.mark.parametrize(
    "garbage",
    [
        b"exit\n",
        MAGIC + struct.pack(">I", 1 << 30),
        encode({"id": 1, "op": "exec", "args": []}),
        encode({"op": "exec"}),
        encode({"stream": "1.qmp", "data": "eA=="}),
        encode({"beat": 0}),
        encode({"beat": "soon"}),
        encode({"beat": None}),
    ],
    ids=["text", "oversize", "args", "no-id", "neither", "beat-0", "beat-text", "beat-null"],
)
def test_garbage_from_the_controller(agent: LocalAgent, standing: Stand, garbage: bytes) -> None:
    """Nonsense is named on stderr, ends the agent with a status of its own, and everything it started."""
    vmm = launched(agent, standing())
    agent.send(garbage)
    status, stderr = agent.end()
    assert status == 3
    assert "garbage" in stderr
    assert "Traceback" not in stderr
    assert are_gone(vmm)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_it_cleanly(agent: LocalAgent, standing: Stand, number: int) -> None:
    """A polite signal has the effect of the end of stdin."""
    vmm = launched(agent, standing())
    agent.process.send_signal(number)
    assert agent.process.wait(20) == 0
    assert are_gone(vmm)


def test_end_of_stdin(agent: LocalAgent, standing: Stand) -> None:
    """The end of the channel ends all that was started: launches, commands and what those left behind."""
    vmm = launched(agent, standing())
    daemon = "sleep 600 >/dev/null 2>&1 & echo $!"
    out = agent.call("exec", argv=["sh", "-c", f"setsid sh -c '{daemon}'"], timeout_s=10)["ok"]["stdout"]
    orphan = os.pidfd_open(int(base64.b64decode(out)))
    agent.ask("exec", argv=["sleep", "600"], timeout_s=600)
    assert agent.end() == (0, "")
    assert are_gone(vmm)
    assert are_gone([orphan])


def test_end_of_stdout(agent: LocalAgent, standing: Stand) -> None:
    """A controller that no longer reads is gone, too."""
    vmm = launched(agent, standing())
    agent.process.stdout.close()
    agent.ask("file.read", path="/proc/version")
    assert agent.process.wait(20) == 0
    assert are_gone(vmm)


@pytest.mark.parametrize(
    ("op", "args", "kind", "text"),
    [
        ("nonsense", {}, "ValueError", "known: facts, exec"),
        ("exec", {}, "TypeError", "timeout_s"),
        ("exec", {"argv": ["true"], "timeout_s": 0}, "ValueError", "positive"),
        ("exec", {"argv": ["true"], "timeout_s": "soon"}, "TypeError", "str"),
        ("exec", {"argv": ["/no/such/program"], "timeout_s": 5}, "ENOENT", "/no/such/program"),
        ("exec", {"argv": ["/"], "timeout_s": 5}, "EACCES", ""),
        ("observe", {"argv": [], **QUICK}, "ValueError", "argv"),
        ("observe", {"argv": ["true"], "mode": "fast", **QUICK}, "ValueError", "trace or stop"),
        ("observe", {"argv": ["true"], "color": "red", **QUICK}, "TypeError", "color"),
        ("observe", {"argv": ["true"], **QUICK, "script": {}}, "ValueError", "questions"),
        ("observe", {"argv": ["true"], "timeout_s": 5}, "TypeError", "script"),
        ("wait", {"launch": 9, "timeout_s": 5}, "ValueError", "9"),
        ("wait", {"launch": "9", "timeout_s": 5}, "ValueError", "9"),
        ("launch", {"argv": ["true"], "timeout_s": 5}, "ValueError", "observe"),
    ],
)
def test_requests_that_are_refused(
    agent: LocalAgent, op: str, args: dict[str, Any], kind: str, text: str
) -> None:
    """A bad request gets an error that says what is wrong, and the conversation goes on."""
    error = agent.call(op, **args)["error"]
    assert error["kind"] == kind
    assert text in error["message"]
    assert "ok" in agent.call("file.read", path="/proc/version")


def test_a_command_that_escapes_its_group(agent: LocalAgent) -> None:
    """A child that holds the output open after the command's end is not waited for."""
    argv = ["sh", "-c", "setsid sleep 600 & echo done"]
    result = agent.call("exec", argv=argv, timeout_s=15)["ok"]
    assert base64.b64decode(result["stdout"]) == b"done\n"
    assert result["timed_out"] is False


def test_a_flood_of_requests(agent: LocalAgent) -> None:
    """Answers that nobody reads yet hold further requests back, and none is lost."""
    numbers = []
    for _ in range(40):
        numbers.append(agent.ask("exec", argv=["head", "-c", "1000000", "/dev/zero"], timeout_s=60))
    got = {agent.receive(lambda frame: "id" in frame)["id"] for _ in numbers}
    assert got == set(numbers)


def test_commands_know_nothing_of_the_channel(agent: LocalAgent) -> None:
    """No descriptor of the agent leaks into what it starts."""
    result = agent.call("exec", argv=["ls", "/proc/self/fd"], timeout_s=10)["ok"]
    assert base64.b64decode(result["stdout"]).split() == [b"0", b"1", b"2", b"3"]  # 3: the listing itself


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("raise RuntimeError('oh no')", "Crashed", "RuntimeError: oh no"),
        ("os.kill(os.getpid(), 9)", "Crashed", "'signal': 9"),
        ("print('debug'); sys.stdout.flush(); return {}", "Crashed", "no JSON"),
        ("time.sleep(60)", "DeadlineExceeded", "within 1 s"),
    ],
    ids=["exception", "signal", "print", "hang"],
)
def test_functions_that_fail(body: str, kind: str, text: str) -> None:
    """Whatever a function does in its child process, the caller gets an error that says it."""
    program = (
        "import os, sys, time\nfrom pytest_seves.agent import command\n"
        "from pytest_seves.agent.loop import Loop\n"
        f"def function(args): {body}\n"
        "loop, results = Loop(), []\n"
        "command.call(loop, results.append, lambda *why: results.append(why), function=function, args={},"
        " timeout_s=1)\n"
        "while not results: loop.turn()\n"
        "print(results[0])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, check=True)
    assert kind in ran.stdout.decode()
    assert text in ran.stdout.decode()


def test_facts(agent: LocalAgent) -> None:
    """Facts are gathered in a process of their own."""
    facts = agent.call("facts")["ok"]
    assert facts["python"] == agent.hello["python"]


def test_a_controller_that_falls_silent(agent: LocalAgent, standing: Stand) -> None:
    """It promised a sign of life: without one the agent ends, with what it had started, and says why."""
    vmm = launched(agent, standing())
    agent.send(encode({"beat": 0.5}))
    assert agent.process.wait(10) == 0
    assert agent.process.stderr
    assert "no sign of the controller for 0.5 s" in agent.process.stderr.read().decode()
    assert are_gone(vmm)


def test_a_controller_that_is_heard(agent: LocalAgent) -> None:
    """Whatever it says is a sign of life, and so is that it takes what it is told."""
    agent.send(encode({"beat": 1.0}))
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert "ok" in agent.call("exec", argv=["true"], timeout_s=5)
    agent.send(encode({"beat": 20.0}))
    assert agent.end()[0] == 0
