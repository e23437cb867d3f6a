# SPDX-License-Identifier: GPL-2.0-or-later
"""Long work says what it is doing, short work says nothing."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from pytest_seves.host.target import Target
from pytest_seves.hosts import entry_of
from pytest_seves.model.host import ModelHost
from pytest_seves.progress import SILENT, Progress

MIB = 1 << 20


class Screen:
    """What was written, and a way to wait for it."""

    def __init__(self) -> None:
        self.text = ""
        self._changed = threading.Condition()

    def write(self, text: str) -> None:
        """Take text, from any thread."""
        with self._changed:
            self.text += text
            self._changed.notify_all()

    def wait_for(self, until: Callable[[str], bool]) -> None:
        """Until the text is as wanted."""
        with self._changed:
            assert self._changed.wait_for(lambda: until(self.text), 20), self.text


def test_short_work_is_not_mentioned() -> None:
    """Nothing is written of what ends in time, on a terminal or not."""
    screen = Screen()
    for live in (False, True):
        with Progress(screen.write, live=live).work("lab1: connecting"):
            pass
    assert screen.text == ""


def test_a_log_gets_lines_and_the_end() -> None:
    """Without a terminal: what, how far and for how long, on whole lines; the last says that it is done."""
    screen, moved = Screen(), iter((MIB, 2 * MIB))
    progress = Progress(screen.write, after_s=0.01)
    with progress.work("lab1: upload of x", 4 * MIB, lambda: next(moved, 3 * MIB)):
        screen.wait_for(lambda text: text.count("\n") >= 2)
    lines = screen.text.splitlines()
    assert lines[0] == "lab1: upload of x: 1.0 of 4.0 MiB, 0 s"
    assert lines[1] == "lab1: upload of x: 2.0 of 4.0 MiB, 0 s"
    assert lines[-1] == "lab1: upload of x: done after 0 s"


def test_a_log_says_when_work_was_given_up() -> None:
    """Work that fails is not called done."""
    screen = Screen()
    with suppress(OSError), Progress(screen.write, after_s=0.01).work("lab1: connecting"):
        screen.wait_for(bool)
        raise OSError("gone")
    assert screen.text.endswith("lab1: connecting: given up after 0 s\n")


def test_a_terminal_has_one_line_that_is_gone_at_the_end() -> None:
    """With a terminal: no line end is written, and the line is blank when the work is done."""
    screen = Screen()
    with Progress(screen.write, live=True, after_s=0.01).work("lab1: connecting"):
        screen.wait_for(lambda text: text.count("\r") >= 2)
    assert "\n" not in screen.text
    drawn = screen.text.split("\r")
    assert drawn[1].startswith("lab1: connecting: 0 s")
    assert drawn[-2:] == [" " * len(drawn[-2]), ""]
    assert len(drawn[-2]) >= len(drawn[1])


def test_nobody_watches() -> None:
    """Without a writer there is no thread either."""
    threads = threading.active_count()
    with SILENT.work("lab1: connecting"):
        assert threading.active_count() == threads


class SlowLine:
    """A TCP proxy that lets so many bytes a second through to the server.

    :ivar port: of its end for clients, on loopback.
    """

    def __init__(self, port: int, bytes_per_s: int) -> None:
        self._server_port = port
        self._bytes_per_s = bytes_per_s
        self._ended = threading.Event()
        self._stack = ExitStack()
        self._listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut every connection."""
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._stack.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for sock in (client, server):
                    self._stack.enter_context(sock)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
                for source, sink, rate in ((client, server, self._bytes_per_s), (server, client, 0)):
                    threading.Thread(target=self._pump, args=(source, sink, rate), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, rate: int) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                sink.sendall(data)
                if rate and self._ended.wait(len(data) / rate):  # the line is busy for so long
                    return
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def own_model() -> Iterator[ModelHost]:
    """A model host that no other test has the lease of."""
    with ModelHost.start() as host:
        yield host


@pytest.fixture
def slow_lab(
    pytester: pytest.Pytester, own_model: ModelHost, request: pytest.FixtureRequest
) -> Iterator[pytest.Pytester]:
    """A lab with a host behind a slow line (1 MB/s, or its parameter), and a test that uploads 4 MiB."""
    model = own_model
    line = SlowLine(model.port, bytes_per_s=getattr(request, "param", 1_000_000))
    pytester.mkdir("lab").joinpath("far.toml").write_text(
        f'[host]\naddress = "127.0.0.1"\nport = {line.port}\nuser = "{model.user}"\n'
        f'identity = "{model.identity}"\nhost_key = "{model.host_key}"\npython = "{sys.executable}"\n'
        f'connect_timeout_s = 60\n[firmware]\npath = "{model.firmware}"\n'
    )
    pytester.makepyfile(
        """
        import os

        def test_quick(sev_host):
            assert sev_host.client.hello

        def test_upload(launch_guest):
            launch_guest.put("big.fd", os.urandom(4 << 20))
        """
    )
    yield pytester
    line.close()


UPLOAD = r"far: upload of big\.fd: (\d\.\d) of 4\.0 MiB, \d s"


def test_a_slow_upload_in_ci(slow_lab: pytest.Pytester) -> None:
    """Whole lines among pytest's own, past its capture of output; a quick connection is not told of."""
    result = slow_lab.runpytest_subprocess("--sev-host", "far")
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if line.startswith("far: ")]
    first = re.fullmatch(UPLOAD, lines[0])
    assert first
    assert 0 < float(first[1]) < 4
    assert re.fullmatch(r"far: upload of big\.fd: done after \d s", lines[-1])
    assert not any("connecting" in line for line in lines)
    result.stderr.no_fnmatch_line("*of big.fd*")


def test_a_slow_upload_of_a_worker(slow_lab: pytest.Pytester) -> None:
    """A worker of xdist writes its lines to stderr, with its name."""
    result = slow_lab.runpytest_subprocess("--sev-host", "far", "-n", "1")
    result.assert_outcomes(passed=2)
    result.stderr.re_match_lines(["gw0: " + UPLOAD, r"gw0: far: upload of big\.fd: done after \d s"])
    result.stdout.no_fnmatch_line("*of big.fd*")


@pytest.mark.parametrize("more", [[], ["-n", "1"]])
def test_a_slow_upload_on_a_terminal(slow_lab: pytest.Pytester, more: list[str]) -> None:
    """One line that is written over and erased; with workers nothing: it is the controller's terminal."""
    screen, terminal = pty.openpty()
    argv = [sys.executable, "-m", "pytest", "--sev-host", "far", "-p", "no:cacheprovider", *more]
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd=slow_lab.path) as run:
        os.close(terminal)
        seen = b""
        with suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(screen, 1 << 16):
                seen += data
        assert run.wait(60) == 0
    os.close(screen)
    text = seen.decode()
    drawn = re.findall(r"\r(far: [^\r\n]*)", text)
    assert bool(drawn) == (not more)
    assert len(set(re.findall(UPLOAD, text))) > 3 or more
    assert "far: " not in [final.rpartition("\r")[2] for final in text.split("\r\n")]
    assert "done after" not in text


@pytest.mark.parametrize("slow_lab", [500], indirect=True)
def test_a_slow_connection_of_a_check(slow_lab: pytest.Pytester, own_model: ModelHost) -> None:
    """`--sev-check` says on stderr that it is still connecting; stdout has the table alone."""
    with Target(entry_of(own_model)) as target:
        assert target.client.hello  # so that the host has the agent already
    result = slow_lab.runpytest_subprocess("--sev-host", "far", "--sev-check")
    assert result.ret == 0
    result.stderr.re_match_lines([r"far: connecting: \d+ s", r"far: connecting: done after \d+ s"])
    result.stdout.fnmatch_lines(["far", "ok *CPU*"], consecutive=True)
