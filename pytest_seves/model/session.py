# SPDX-License-Identifier: GPL-2.0-or-later
"""What sshd starts for each command of a session: the command under the model, and its supervisor.

The child installs the seccomp filter and becomes the user's shell. This process is the supervisor and the
ancestor of all that the command starts, so that reading its memory needs no privilege.
"""

from __future__ import annotations

import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from . import bpf, seccomp
from .session_supervisor import ENDING_SIGNALS, LOG_NAME, SIGNALS, Session, log_failure

_SHELL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)


def _become_command(channel: socket.socket) -> None:
    """In the child: under the filter, then into the user's shell."""
    command = os.environ.pop("SSH_ORIGINAL_COMMAND", None)
    account = pwd.getpwuid(os.getuid())
    shell = account.pw_shell or "/bin/sh"
    os.environ["HOME"] = account.pw_dir
    for name in ("OLDPWD", "_"):  # left by the shell that ran us
        os.environ.pop(name, None)
    # Or else bash takes this for a login by SSH and reads ~/.bashrc, whose owner did not log in: slow ones
    # exist, and ones that leave a lock behind when they are killed.
    os.environ["SHLVL"] = "1"
    argv = [shell, "-c", command] if command is not None else [f"-{os.path.basename(shell)}"]
    for number in (*_SHELL_SIGNALS, *ENDING_SIGNALS, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    listener = seccomp.install(bpf.model_filter())
    seccomp.send_listener(channel, listener)
    os.close(listener)
    os.execv(shell, argv)


def _start_command() -> tuple[int, int]:
    """Fork the command; (its pid, the listener)."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _become_command(theirs)
        except Exception as error:  # noqa: BLE001  a fork's boundary: nothing may run on into the parent's code
            os.write(2, f"model session: {error}\n".encode())
        finally:
            os._exit(126)
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    if not descriptors:
        os.waitpid(child, 0)
        raise SystemExit(126)
    return child, descriptors[0]


def _detach(directory: str) -> None:
    """Leave the channel to the command alone: sshd sees its end when the command closes it."""
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(f"{directory}/{LOG_NAME}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)


def _end_like(status: int) -> None:
    """End as the command did, signal included, so that sshd reports the same."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of sshd's ForceCommand: directory, profile, EBX of CPUID 0x8000001F."""
    directory, profile, encryption_ebx = sys.argv[1:] if arguments is None else arguments
    sshd = os.getppid()
    child, listener = _start_command()
    signals = seccomp.signal_descriptor(SIGNALS)
    for number in _SHELL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    seccomp.adopt_orphans()
    seccomp.die_with_parent(signal.SIGTERM)
    if os.getppid() != sshd:
        os.kill(os.getpid(), signal.SIGTERM)
    _detach(directory)
    session = Session(profile, int(encryption_ebx), directory, listener, child)
    os.kill(os.getpid(), signal.SIGCHLD)  # the child may have ended before it was blocked
    try:
        status = session.run(signals)
    except Exception:  # noqa: BLE001  the process boundary: log, then end the session rather than hang it
        log_failure()
        status = 125 << 8
    session.close()
    _end_like(status)
