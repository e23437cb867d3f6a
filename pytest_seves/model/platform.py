# SPDX-License-Identifier: GPL-2.0-or-later
"""What all guests of a host share: the firmware and KVM's pool of ASIDs, in a process of their own.

Each guest supervisor holds one connection. When it ends, by a close or by a crash, its guests are
deactivated and decommissioned and their ASIDs freed, as the kernel does when the last descriptor of a VM
goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..spec.sev import FirmwareStatus
from ..spec.vmsa import VMSA_PAGE_SIZE
from . import wire
from .asid import AsidPool
from .firmware import Firmware
from .firmware_error import FirmwareError
from .memory import Refusal, TargetMemory
from .platform_client import short_path
from .profiles import Profile

LOG_NAME = "firmware.jsonl"

Values = dict[str, Any]
Result = tuple[Values, bytes]


@dataclass
class Client:
    """One guest supervisor. `memory` is the VMM's, which the firmware reads and writes by DMA."""

    connection: socket.socket
    memory: TargetMemory | None = None
    process: int | None = None
    handles: list[int] = field(default_factory=list)
    asids: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """False once the VMM has exited (its pidfd is readable), though its supervisor may not know yet."""
        if self.process is None:
            return True
        poller = select.poll()
        poller.register(self.process, select.POLLIN)
        return not poller.poll(0)


class Platform:
    """The server."""

    def __init__(self, profile: Profile, directory: Path) -> None:
        self.firmware = Firmware(profile.firmware_config())
        self._leaks = profile.wrong_guest_leaked
        self.pool = AsidPool(profile.es_asids, profile.sev_asids, self._flush)
        self._log = os.open(
            directory / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._clients: dict[socket.socket, Client] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(str(directory)) as path:
            self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._operations: dict[str, Callable[[Client, Values, bytes], Result]] = {
            "hello": self._hello,
            "asid_allocate": self._asid_allocate,
            "asid_release": self._asid_release,
            "asid_usage": self._asid_usage,
            "memory_key": self._memory_key,
            "PLATFORM_STATUS": lambda *_: ({}, self.firmware.platform_status()),
            "FACTORY_RESET": self._factory_reset,
            "PDH_CERT_EXPORT": self._pdh_cert_export,
            "GET_ID": lambda _, values, __: ({}, self.firmware.get_id(values["length"])),
            "LAUNCH_START": self._launch_start,
            "ACTIVATE": self._activate,
            "LAUNCH_UPDATE_DATA": self._launch_update_data,
            "LAUNCH_MEASURE": self._launch_measure,
            "LAUNCH_UPDATE_SECRET": self._launch_secret,
            "LAUNCH_FINISH": self._launch_finish,
            "GUEST_STATUS": lambda _, values, __: (dict(self.firmware.guest_status(values["handle"])), b""),
            "DEACTIVATE": self._deactivate,
            "DECOMMISSION": self._decommission,
        }

    def serve(self) -> None:
        """Answer until the process is killed."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._clients[connection] = Client(connection)
                    self._selector.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._clients:
                    self._serve_one(self._clients[key.fileobj])

    def _serve_one(self, client: Client) -> None:
        try:
            if client.memory is None:
                self._receive_descriptors(client)
            header, payload = wire.receive(client.connection)
            reply = self._answer(client, header, payload)
            client.connection.sendall(reply)
        except (wire.Disconnected, ConnectionError):
            self._drop(client)

    def _receive_descriptors(self, client: Client) -> None:
        """The first byte of a connection carries the VMM's memory and pidfd, or nothing for a mere query."""
        data, descriptors, _, _ = socket.recv_fds(client.connection, 1, 2)
        if not data:
            raise wire.Disconnected("closed before its first message")
        if descriptors:
            client.process = descriptors[1]
        client.memory = TargetMemory(descriptors[0] if descriptors else -1)

    def _answer(self, client: Client, header: Values, payload: bytes) -> bytes:
        operation = header["op"]
        if operation == "LAUNCH_UPDATE_VMSA":
            return self._launch_update_vmsa(header, payload)
        run = self._operations[operation]
        if operation.islower():
            values, out = run(client, header, payload)
            return wire.pack({"status": 0, **values}, out)
        return self._command(operation, header, lambda: run(client, header, payload))

    def _command(self, name: str, values: Values, run: Callable[[], Result]) -> bytes:
        """One firmware command: execute, log, pack the answer."""
        status = FirmwareStatus.SUCCESS
        answer: Values = {}
        out = b""
        try:
            answer, out = run()
        except FirmwareError as error:
            status = error.status
            if error.wanted_length is not None:
                answer = {"length": error.wanted_length}
        except Refusal:
            answer = {"fault": True}
        self._record(name, {**values, **answer}, status)
        return wire.pack({"status": int(status), **answer}, out)

    def _record(self, name: str, values: Values, status: FirmwareStatus, **more: str) -> None:
        entry = {"t": time.monotonic_ns(), "command": name, "status": int(status), **more}
        entry.update({k: values[k] for k in ("handle", "asid", "policy", "address", "length") if k in values})
        os.write(self._log, json.dumps(entry).encode() + b"\n")

    def _drop(self, client: Client) -> None:
        """Release all that a supervisor held."""
        if self._clients.pop(client.connection, None) is None:
            return
        if not (self._leaks and client.handles):
            self._give_back(client)
        self._selector.unregister(client.connection)
        client.connection.close()
        for descriptor in (client.memory.descriptor if client.memory else -1, client.process or -1):
            if descriptor >= 0:
                os.close(descriptor)

    def _give_back(self, client: Client) -> None:
        for handle in list(client.handles):
            if self.firmware.guests[handle].asid is not None:
                self._command("DEACTIVATE", {"handle": handle}, lambda h=handle: self._flush_guest(h))  # type: ignore[misc]
            self._command("DECOMMISSION", {"handle": handle}, lambda h=handle: self._forget_guest(h))  # type: ignore[misc]
        for asid in client.asids:
            self.pool.release(asid)

    def _drop_dead(self) -> None:
        for client in [client for client in self._clients.values() if not client.alive]:
            self._drop(client)

    # KVM's part

    def _hello(self, _: Client, __: Values, ___: bytes) -> Result:
        return {}, b""

    def _asid_allocate(self, client: Client, values: Values, _: bytes) -> Result:
        self._drop_dead()
        asid = self.pool.allocate(values["es"])
        if asid is not None:
            client.asids.append(asid)
        return {"asid": asid}, b""

    def _asid_release(self, client: Client, values: Values, _: bytes) -> Result:
        client.asids.remove(values["asid"])
        self.pool.release(values["asid"])
        return {}, b""

    def _asid_usage(self, *_: object) -> Result:
        self._drop_dead()
        return {"sev": self.pool.in_use(es=False), "sev_es": self.pool.in_use(es=True)}, b""

    def _memory_key(self, _: Client, values: Values, __: bytes) -> Result:
        """What ACTIVATE put into the memory controller's slot for an ASID."""
        return {}, self.firmware.memory_key(values["asid"])

    def _flush(self) -> None:
        self.firmware.df_flush()
        self._record("DF_FLUSH", {}, FirmwareStatus.SUCCESS)

    # Firmware commands

    def _factory_reset(self, *_: object) -> Result:
        self.firmware.factory_reset()
        return {}, b""

    def _pdh_cert_export(self, _: Client, values: Values, __: bytes) -> Result:
        pdh, chain = self.firmware.pdh_cert_export(values["pdh_length"], values["chain_length"])
        return {"pdh": len(pdh)}, pdh + chain

    def _launch_start(self, client: Client, values: Values, payload: bytes) -> Result:
        cut = values["certificate"]
        handle = self.firmware.launch_start(values["policy"], payload[:cut], payload[cut:])
        client.handles.append(handle)
        return {"handle": handle}, b""

    def _activate(self, _: Client, values: Values, __: bytes) -> Result:
        self.firmware.activate(values["handle"], values["asid"])
        return {}, b""

    def _launch_update_data(self, client: Client, values: Values, _: bytes) -> Result:
        memory = self._memory(client)
        plain = memory.read(values["address"], values["length"])
        memory.write(
            values["address"], self.firmware.launch_update_data(values["handle"], values["address"], plain)
        )
        return {}, b""

    def _launch_update_vmsa(self, values: Values, payload: bytes) -> bytes:
        """One command for each page of the payload, up to the first that fails."""
        out = bytearray()
        status = FirmwareStatus.SUCCESS
        for number, address in enumerate(values["addresses"]):
            page = payload[number * VMSA_PAGE_SIZE :][:VMSA_PAGE_SIZE]
            try:
                out += self.firmware.launch_update_vmsa(values["handle"], address, page)
            except FirmwareError as error:
                status = error.status
            told = {"handle": values["handle"], "address": address, "length": len(page)}
            self._record("LAUNCH_UPDATE_VMSA", told, status, sha256=hashlib.sha256(page).hexdigest())
            if status is not FirmwareStatus.SUCCESS:
                break
        return wire.pack({"status": int(status)}, bytes(out))

    def _launch_measure(self, _: Client, values: Values, __: bytes) -> Result:
        out = self.firmware.launch_measure(values["handle"], values["length"])
        digest = self.firmware.guests[values["handle"]].digest.hexdigest()
        self._record("launch digest", values, FirmwareStatus.SUCCESS, sha256=digest)
        return {"length": len(out)}, out

    def _launch_secret(self, client: Client, values: Values, payload: bytes) -> Result:
        cut = values["header"]
        address = values["address"]
        arguments = (values["handle"], address, values["length"], payload[:cut], payload[cut:])
        self._memory(client).write(address, self.firmware.launch_secret(*arguments))
        return {}, b""

    def _launch_finish(self, _: Client, values: Values, __: bytes) -> Result:
        self.firmware.launch_finish(values["handle"])
        return {}, b""

    def _deactivate(self, _: Client, values: Values, __: bytes) -> Result:
        return self._flush_guest(values["handle"])

    def _flush_guest(self, handle: int) -> Result:
        self.firmware.deactivate(handle)
        return {}, b""

    def _decommission(self, client: Client, values: Values, _: bytes) -> Result:
        self.firmware.decommission(values["handle"])
        client.handles.remove(values["handle"])
        return {}, b""

    def _forget_guest(self, handle: int) -> Result:
        self.firmware.decommission(handle)
        return {}, b""

    @staticmethod
    def _memory(client: Client) -> TargetMemory:
        if client.memory is None or client.memory.descriptor < 0:
            raise FirmwareError(FirmwareStatus.INVALID_ADDRESS)
        return client.memory
