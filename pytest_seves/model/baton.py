# SPDX-License-Identifier: GPL-2.0-or-later
"""Who receives a session's notifications: words on the channel between a session and its guest supervisors.

A filter chain has one listener. Receiving in the session and passing on costs a wake-up for each request
of a guest, so the supervisor of the newest guest receives itself and passes back what is not its guest's.
There is one receiver at a time: a second one, woken for the same notification, would block in the kernel.
Hence the hand-over is acknowledged.
"""

from __future__ import annotations

from .seccomp import NOTIFICATION

#: Session to supervisor: receive from now on; stop receiving.
TAKE = b"T"
YIELD = b"Y"
#: Supervisor to session: stopped.
YIELDED = b"D"
#: Any longer message is a notification passed on.
MESSAGE_SIZE = NOTIFICATION.size
