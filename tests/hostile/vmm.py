#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that means harm: what it says on stderr, stdout, the console and QMP is hostile, and it ends with 3.

Asked for its version it adds to what the machine's QEMU says; asked for its properties it is that QEMU. With
a file `flood` beside it, it writes 1 GiB without a line feed to stderr and 64 MiB to the console, and notes
beside itself how much memory the processes above it had before and after, which read that.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

WORDS = (
    b"\x1b[31mred\x1b]0;owned\x07 \x00 \x9b2J \xff\xfe\xc3\r over"
    b"</script><script>alert(1)</script><img src=x onerror=alert(1)> ]]> &lt; | `code` "
    b"../../../../etc/passwd \xe2\x80\xaegnp.exe ::error::x ##[error]y @everyone"
)
LINE = WORDS + b"\nsecond line " + WORDS + b"\n::error::owned\n  ##[error]owned\n"


def memory_kib(process: int) -> dict[int, int]:
    """The most that the process and each one above it ever had, as far as we may look."""
    found = {}
    while process > 1:
        try:
            with open(f"/proc/{process}/status") as file:
                status = file.read()
        except OSError:
            break
        most = re.findall(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
        found[process] = int(most[0]) if most else 0
        process = int(re.findall(r"^PPid:\s+(\d+)", status, re.MULTILINE)[0])
    return found


def main() -> int:
    """Say it all, and end."""
    if "--version" in sys.argv:
        told = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True)
        os.write(1, told.stdout.splitlines()[0] + b" " + WORDS + b"\n")
        return 0
    if any("help" in word for word in sys.argv):
        os.execvp("qemu-system-x86_64", ["qemu-system-x86_64", *sys.argv[1:]])
    console, qmp = socket.socket(fileno=4), socket.socket(fileno=3)
    here = os.path.dirname(os.path.abspath(__file__))
    console.sendall(LINE)
    if os.path.exists(os.path.join(here, "flood")):
        before = memory_kib(os.getppid())
        for _ in range(1 << 10):
            os.write(2, b"A" * (1 << 20))
        for _ in range(1 << 6):
            console.sendall(b"B" * (1 << 20))
        with open(os.path.join(here, "memory"), "w") as file:
            json.dump({"before": before, "after": memory_kib(os.getppid())}, file)
    os.write(1, LINE)
    os.write(2, LINE)
    said = json.dumps(LINE.decode("latin-1") + "\ud800\udcff").encode()
    qmp.sendall(b'{"QMP": {"version": {"package": %b}, "capabilities": []}}\r\n' % said)
    if asked := qmp.recv(1 << 16):
        number = json.dumps(json.loads(asked.splitlines()[0]).get("id")).encode()
        qmp.sendall(b'{"return": {"status": %b}, "id": %b}\r\n' % (said, number))
    return 3


if __name__ == "__main__":
    sys.exit(main())
