# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that closes its monitor as soon as it has answered: guards against qemu.qmp's assertion about it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, cast

from qemu.qmp import QMPClient

from pytest_seves.guest.conversation import Conversation

if TYPE_CHECKING:
    from pytest_seves.host.client import AgentClient

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


async def connect() -> str:
    """What comes of a connection to such a VMM."""
    ours, theirs = socket.socketpair()

    def vmm() -> None:
        with theirs:
            theirs.sendall(GREETING)
            theirs.recv(1 << 16)
            theirs.sendall(b'{"return": {}}\r\n')

    thread = threading.Thread(target=vmm)
    thread.start()
    peer = QMPClient("closes")
    peer.logger.setLevel(logging.CRITICAL)
    conversation = Conversation(cast("AgentClient", None), 1, time.monotonic() + 10)
    try:
        await conversation._connect(peer, ours)
    except EOFError as error:
        return str(error)
    finally:
        await conversation._goodbye(peer)
        thread.join()
    return "connected"


def test_it_ended_and_no_test_failed() -> None:
    """Whether its end is noticed at once or later is a matter of time; it is never an AssertionError."""
    told = {asyncio.run(connect()) for _ in range(20)}
    assert "the VMM closed its monitor as soon as it had answered" in told
    assert told <= {"the VMM closed its monitor as soon as it had answered", "connected"}
