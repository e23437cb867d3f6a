# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that starts the agent on a host, in one SSH exec.

The script looks for the agent of the wanted SHA-256 in the user's cache directory, asks for it when it is not
there or not what it should be, and becomes it. It speaks frames like the agent: ``{"bootstrap": "send"}``
asks for the program (a 32-bit big-endian length and the bytes), ``{"bootstrap": "error", "kind": ...,
"message": ...}`` is the end.
"""

from __future__ import annotations

import base64
import shlex

# Runs under any Python from 2.7 on: an old one is to say so, not to raise SyntaxError.
SCRIPT = r"""
import sys
sys.path[:] = [p for p in sys.path if p]
import hashlib, json, os, stat, struct, tempfile

def frame(message):
    body = json.dumps(message).encode("utf-8")
    data = b"\0SEV" + struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(1, data):]

def fail(kind, message):
    frame({"bootstrap": "error", "kind": kind, "message": message})
    sys.exit(4)

def take(size):
    data = b""
    while len(data) < size:
        part = os.read(0, min(size - len(data), 1 << 18))
        if not part:
            sys.exit(5)
        data += part
    return data

def is_good(path, sha):
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            return False
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == sha
    except (OSError, IOError):
        return False

def make_directory():
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "pytest-seves")
    try:
        os.makedirs(path, 0o700)
    except OSError:
        if not os.path.isdir(path):
            raise
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        fail("Cache", "%s: not a directory of user %d, but of %d" % (path, os.geteuid(), info.st_uid))
    os.chmod(path, 0o700)
    return path

def store(directory, path, sha):
    data = take(struct.unpack(">I", take(4))[0])
    if hashlib.sha256(data).hexdigest() != sha:
        fail("Cache", "the agent was damaged on its way: %d bytes of another digest" % len(data))
    fd, partial = tempfile.mkstemp(dir=directory)
    try:
        try:
            while data:
                data = data[os.write(fd, data):]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(partial, path)
    except (OSError, IOError):
        os.unlink(partial)
        raise

def main(sha):
    if sys.version_info < (3, 9):
        fail("OldPython", "%s is Python %d.%d" % ((sys.executable,) + tuple(sys.version_info[:2])))
    directory = "the home directory"
    try:
        directory = make_directory()
        path = os.path.join(directory, "agent-%s.pyz" % sha)
        if not is_good(path, sha):
            frame({"bootstrap": "send"})
            store(directory, path, sha)
    except (OSError, IOError) as error:
        fail("Cache", "%s: %s" % (getattr(error, "filename", None) or directory, error.strerror or error))
    os.execv(sys.executable, [sys.executable, "-I", "-u", path])

main(sys.argv[1])
"""


def command(python: str, sha256: str, sudo: tuple[str, ...] = ()) -> str:
    """The command line for the user's login shell on the host.

    :param sudo: words to put before it, such as ``("sudo", "-n")``.
    """
    # One line of plain characters: a login shell may be a csh, whose quotes hold no newlines.
    text = base64.b64encode(SCRIPT.encode()).decode()
    line = f'import base64;exec(base64.b64decode("{text}"))'
    # -E -s: no PYTHON* variables, no user site-packages. (-I says more, but Python 2 does not know it.)
    return shlex.join([*sudo, python, "-E", "-s", "-c", line, sha256])
