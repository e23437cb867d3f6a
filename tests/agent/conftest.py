# SPDX-License-Identifier: GPL-2.0-or-later
"""An agent on this machine, spoken to through pipes."""

from __future__ import annotations

import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_seves.agent.frames import Decoder, encode
from tests.agent.standing import Standing

_ANSWER_S = 20.0


class LocalAgent:
    """A conversation with an agent, one frame at a time.

    :ivar temp: where it puts its private directory.
    """

    def __init__(self, process: subprocess.Popen[bytes], temp: Path) -> None:
        self.process = process
        self.temp = temp
        self._decoder = Decoder()
        self._arrived: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self.hello = self.receive(lambda frame: "hello" in frame)["hello"]

    def send(self, data: bytes) -> None:
        """Write `data` as it is."""
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next frame that is `wanted`; others wait for later."""
        assert self.process.stdout
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + _ANSWER_S
        while True:
            for frame in self._arrived:
                if wanted(frame):
                    self._arrived.remove(frame)
                    return frame
            assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], "no answer"
            data = os.read(fd, 1 << 16)
            assert data, self.end()
            self._arrived += self._decoder.feed(data)

    def ask(self, op: str, **args: Any) -> int:
        """Send a request; its number."""
        number = next(self._numbers)
        self.send(encode({"id": number, "op": op, "args": args}))
        return number

    def call(self, op: str, **args: Any) -> dict[str, Any]:
        """The whole reply to a request: it has "ok" or "error"."""
        number = self.ask(op, **args)
        return self.receive(lambda frame: frame.get("id") == number)

    def end(self) -> tuple[int, str]:
        """End of stdin: the exit status and stderr."""
        _, stderr = self.process.communicate(timeout=_ANSWER_S)
        return self.process.returncode, stderr.decode()


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., LocalAgent]]:
    """Start agents; `prefix` is put before the command, other arguments are those of Popen."""
    with ExitStack() as stack:

        def start(prefix: tuple[str, ...] = (), **options: Any) -> LocalAgent:
            temp = tmp_path / "temp"
            temp.mkdir(exist_ok=True)
            command = [*prefix, sys.executable, "-m", "pytest_seves.agent"]
            pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            environment = {**os.environ, "TMPDIR": str(temp), "PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.Popen(command, **pipes, env=environment, **options)
            stack.callback(_stop, process)
            return LocalAgent(process, temp)

        yield start


@pytest.fixture
def agent(start_agent: Callable[..., LocalAgent]) -> LocalAgent:
    """A running agent."""
    return start_agent()


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Callable[..., Standing]]:
    """VMMs that last; `more` is for their requests."""
    made: list[Standing] = []

    def make(**more: Any) -> Standing:
        made.append(Standing(tmp_path, len(made), **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # not SIGKILL: it is to take along what it has started
    try:
        process.wait(_ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream and not stream.closed:
            stream.close()
