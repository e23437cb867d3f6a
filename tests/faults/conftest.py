# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of pytest that something goes wrong in, against model hosts that the plugin takes for real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_seves.model.host import ModelHost
from tests.faults.proxy import Proxy

PROJECT = Path(__file__).resolve().parents[2]
_INI = "[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider\nsev_lab = lab\n"


@dataclass
class Rig:
    """A directory with a lab and tests, and runs of pytest in it."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def host(self, name: str, model: ModelHost, proxy: Proxy | None = None, **keys: float) -> None:
        """A lab file for a running model host, as for a real one; through `proxy`, if given."""
        values: dict[str, object] = {
            "address": model.address,
            "port": proxy.port if proxy else model.port,
            "user": model.user,
            "identity": str(model.identity),
            "host_key": model.host_key,
            "python": sys.executable,
            "keepalive_s": 1,
            "connect_timeout_s": 2.0,
            **keys,
        }
        lines = [f"{key} = {value!r}" for key, value in values.items()]
        text = "\n".join(["[host]", *lines, "[firmware]", f"path = {str(model.firmware)!r}", ""])
        self.path.joinpath("lab").mkdir(exist_ok=True)
        self.path.joinpath(f"lab/{name}.toml").write_text(text)
        self.environment[f"{name.upper()}_PID"] = str(model.pid)
        self.environment[f"{name.upper()}_DIR"] = str(model.directory)
        if proxy:
            self.environment[f"{name.upper()}_PROXY"] = str(proxy.control)

    def write(self, name: str, text: str) -> None:
        """A file of tests."""
        self.path.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        self.path.joinpath(name).write_text(text)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start pytest here."""
        self.path.joinpath("pytest.ini").write_text(_INI)
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-rfE", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> Result:
        """Run pytest to its end."""
        began = time.monotonic()
        process = self.start(*arguments)
        text, _ = process.communicate(timeout=100)
        return Result(process.returncode, text, time.monotonic() - began)


@dataclass(frozen=True)
class Result:
    """How a run ended: status, output, seconds."""

    status: int
    text: str
    took_s: float

    def outcomes(self) -> Mapping[str, int]:
        """Counts of pytest's last line."""
        words = self.text.strip().splitlines()[-1].strip("= ").partition(" in ")[0].replace(",", "").split()
        return {name.rstrip("s"): int(count) for count, name in zip(words[::2], words[1::2], strict=True)}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A new one."""
    return Rig(tmp_path)


@pytest.fixture
def start_model() -> Iterator[Callable[..., ModelHost]]:
    """Start model hosts of this test's own."""
    started = []

    def start(profile: str = "linux-6.1", directory: Path | None = None) -> ModelHost:
        started.append(ModelHost.start(profile, directory))
        return started[-1]

    yield start
    for model in started:
        model.close()


@pytest.fixture
def start_proxy() -> Iterator[Callable[[ModelHost], Proxy]]:
    """Start proxies in front of model hosts."""
    started = []

    def start(model: ModelHost) -> Proxy:
        started.append(Proxy(model.port))
        return started[-1]

    yield start
    for proxy in started:
        proxy.close()
