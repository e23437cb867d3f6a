# SPDX-License-Identifier: GPL-2.0-or-later
"""A headless Chromium over its debugging pipe: what a page ran, what it asked for, and what it looks like."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

_NAMES = "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"
_LIMIT_S = 60.0
#: Headless, and without what connects by itself.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
Json = dict[str, Any]


@dataclass
class Tab:
    """One tab. `events` are all that Chromium told, by method."""

    _to: IO[bytes]
    _from: IO[bytes]
    _session: str = ""
    _sent: int = 0
    events: list[tuple[str, Json]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> Json:
        """Call a method of the DevTools protocol, and wait for its answer."""
        self._sent += 1
        message: Json = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            told = self._next()
            if told.get("id") == self._sent:
                assert "error" not in told, told
                answer: Json = told["result"]
                return answer

    def attach(self) -> None:
        """To a new tab, with everything that is to be told turned on."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Debugger", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def told(self, method: str) -> list[Json]:
        """Parameters of the events with this method."""
        return [parameters for name, parameters in self.events if name == method]

    def requested(self) -> list[str]:
        """Addresses that the page asked for, itself among them."""
        return [event["request"]["url"] for event in self.told("Network.requestWillBeSent")]

    def scripts(self) -> list[str]:
        """Scripts that were compiled, by address."""
        return [event["url"] for event in self.told("Debugger.scriptParsed")]

    def screenshot(self, file: Path) -> None:
        """The whole page, as it is on a screen."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, file: Path) -> None:
        """The page on paper: A4."""
        paper = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        file.write_bytes(base64.b64decode(paper["data"]))

    def _next(self) -> Json:
        raw = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "Chromium ended"
            raw += byte
        told: Json = json.loads(raw)
        if "method" in told:
            self.events.append((told["method"], told.get("params", {})))
        return told


def program() -> str:
    """The browser; skips where this machine has none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no chromium on this machine")
    return found


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A browser with a profile of its own below `folder`; it has ended afterwards."""
    read, to = os.pipe()
    back, write = os.pipe()
    start = ["bash", "-c", f'exec 3<&{read} 4>&{write}; exec "$@"', "-", program(), *_OPTIONS]
    process = subprocess.Popen(
        [*start, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(read, write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    guard = threading.Timer(_LIMIT_S, process.kill)
    guard.start()
    try:
        with open(to, "wb") as sent, open(back, "rb", buffering=1 << 16) as received:
            made = Tab(sent, received)
            made.attach()
            yield made
            made._session = ""
            made.call("Browser.close")
        process.wait(timeout=10)
    finally:
        guard.cancel()
        process.kill()
        process.wait()


def sheets(pdf: Path) -> list[str]:
    """The text of each sheet of a PDF; skips where pdftotext is not there."""
    tool = shutil.which("pdftotext")
    if tool is None:
        pytest.skip("no pdftotext on this machine (Debian: poppler-utils)")
    text = subprocess.run([tool, "-layout", str(pdf), "-"], stdout=subprocess.PIPE, check=True).stdout
    return text.decode("utf-8", "replace").split("\f")[:-1]
