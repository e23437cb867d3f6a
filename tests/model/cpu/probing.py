# SPDX-License-Identifier: GPL-2.0-or-later
"""The probe guest under the machine's unmodified QEMU on a model host."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_seves.evidence.probe_report import ProbeReport, read_reports
from pytest_seves.guest.payload.image import probe_image
from pytest_seves.model.host import ModelHost
from pytest_seves.spec.gdb import PacketReader, encode
from tests.model.driving import Guest

_DEADLINE_S = 30.0


class Probe:
    """One launch.

    :ivar guest: the QEMU.
    """

    def __init__(self, launch: Callable[..., Guest], on: ModelHost, image: bytes, **options: Any) -> None:
        firmware = on.directory / "probe.bin"
        firmware.write_bytes(image)
        self._console = on.directory / "probe-console"
        self._console.unlink(missing_ok=True)
        self._gdb = on.directory / "gdb"
        ours = f"-serial file:{self._console} -gdb unix:{self._gdb},server=on,wait=off"
        extra = f"{ours} {options.pop('extra', '')}"
        self.guest = launch(on=on, firmware=f"-bios {firmware}", extra=extra, **options)

    @property
    def console(self) -> bytes:
        """What it has said."""
        return self._console.read_bytes() if self._console.exists() else b""

    def wait(self, condition: Callable[[bytes], bool]) -> bytes:
        """The console, once it is as wanted.

        :raise TimeoutError: with the console as it is instead.
        """
        end = time.monotonic() + _DEADLINE_S
        while not condition(self.console) or not self.console.endswith(b"\n"):
            if time.monotonic() > end:
                raise TimeoutError(self.console)
            time.sleep(0.01)
        return self.console

    def report(self) -> ProbeReport:
        """Its report, once that has its end."""
        (report,) = read_reports(self.wait(lambda console: b" end " in console))
        return report

    def memory(self, address: int, size: int = 4096) -> bytes:
        """Guest memory as QEMU has it."""
        file = self._console.with_name("memory")
        self.guest("pmemsave", val=address, size=size, filename=str(file))
        return Path(file).read_bytes()

    def quit(self) -> list[str]:
        """End QEMU, which must end well; what the model noted about the guest."""
        assert self.guest.quit() == 0
        log, end = self._console.with_name("guests.jsonl"), time.monotonic() + _DEADLINE_S
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.01)
        notes: list[str] = json.loads(log.read_text().splitlines()[-1])["notes"]
        return notes

    def debug(self, *packets: str) -> list[str]:
        """Stop the guest, attach to the gdbstub, and send these; D lets it go on."""
        self.guest("stop")  # else the stub tells of the stop without being asked
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_DEADLINE_S)
            peer.connect(str(self._gdb))
            return [_exchange(peer, packet) for packet in packets]

    def monitor(self, command: str) -> str:
        """A command of the human monitor."""
        return str(self.guest("human-monitor-command", **{"command-line": command}))


def _exchange(peer: socket.socket, packet: str) -> str:
    """The gdbstub's answer to a packet that has one."""
    peer.sendall(encode(packet))
    reader, answers = PacketReader(), list[str]()
    while not answers:
        answers = reader.feed(peer.recv(1 << 16))
    peer.sendall(b"+")
    return answers[0]


def boot(launch: Callable[..., Guest], on: ModelHost, scenario: str = "boot", **parameters: Any) -> Probe:
    """Launch the probe guest with two vCPUs as a SEV-ES guest, if not told otherwise.

    :param parameters: ``vcpus``, ``policy`` and ``extra`` are for QEMU, the others for the image.
    """
    options = {name: parameters.pop(name) for name in ("vcpus", "policy", "extra") if name in parameters}
    return Probe(launch, on, probe_image(scenario, **parameters), **{"vcpus": 2, "policy": 5, **options})
