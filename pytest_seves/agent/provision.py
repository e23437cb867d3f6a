# SPDX-License-Identifier: GPL-2.0-or-later
"""Look at a host, change one thing on it, take one change back: in a child of the agent, which may block.

Each change is in the record (:mod:`.changes`) before it is made, and undone only while it is as it was left.
"""

from __future__ import annotations

import base64
import errno
import grp
import os
import pwd
import shutil
import subprocess
from typing import Any, Callable, Dict, List

from pytest_seves.agent import changes
from pytest_seves.agent.changes import PARTIAL, Change, Record, Refused, State, state

_MODE = 0o644
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "HOME": "/"}
_APT_OPTIONS = ["-o", "DPkg::Lock::Timeout=120", "-o", "APT::Cmd::Pattern-Only=true"]
#: How each package manager installs. Removal is left to dpkg and rpm, which take nothing else along.
_INSTALL = {
    "apt": ["apt-get", "-qy", *_APT_OPTIONS, "--no-install-recommends", "install", "--"],
    "dnf": ["dnf", "-y", "install", "--"],
    "zypper": ["zypper", "--non-interactive", "install", "--"],
}
_SYS = "/sys/module"


class CommandFailed(Exception):
    """A program of the host did not do it; its own words are in the text."""


def perform(args: Dict[str, Any]) -> Dict[str, Any]:
    """Do what ``args["do"]`` names with the rest of `args`; what went wrong is ``{"failed": ...}``."""
    do, rest = args["do"], {name: value for name, value in args.items() if name != "do"}
    os.umask(0o022)
    try:
        return _DO[do](**rest)
    except OSError as error:
        where = error.filename or changes.folder()  # a write names no file: the record's are written here
        text = f"{where}: {error.strerror or error}; {_free(where)} bytes are free there"
        return _failed(errno.errorcode.get(error.errno or 0, "OSError"), text)
    except (Refused, CommandFailed) as error:
        return _failed(type(error).__name__, str(error))


def _failed(kind: str, message: str) -> Dict[str, Any]:
    return {"failed": {"kind": kind, "text": message, "evidence": {}}}


def _free(path: str) -> int:
    info = os.statvfs(_existing(path))
    return info.f_bavail * info.f_frsize


def _existing(path: str) -> str:
    """`path`, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


# Looking: changes nothing


def _who() -> Dict[str, Any]:
    return {"uid": os.geteuid()}


def _look(
    paths: List[str], programs: List[str], packages: Dict[str, List[str]], user: str, groups: List[str]
) -> Dict[str, Any]:
    manager = next((name for name in _INSTALL if shutil.which(_INSTALL[name][0], path=_PATH)), None)
    wanted = packages.get(manager or "", packages.get("any", []))
    return {
        "uid": os.geteuid(),
        "changes": changes.load(changes.folder()),
        "root_changed": os.path.isdir(changes.ROOTS),
        "paths": {path: {"writable": _writable(path), **_state(path)} for path in paths},
        "programs": {path: os.access(path, os.X_OK) and os.path.isfile(path) for path in programs},
        "manager": manager,
        "missing": _missing(manager, wanted) if manager and wanted else wanted,
        "groups": {group: _is_member(user, group) for group in groups},
        "closed": [path for path in ("/dev/kvm", "/dev/sev") if os.path.exists(path) and not _is_open(path)],
        "modules": {name: _module(name) for name in ("kvm_amd", "ccp")},
    }


def _state(path: str) -> State:
    try:
        return state(path)
    except PermissionError:
        return {"kind": "unreadable"}


def _writable(path: str) -> bool:
    there = _existing(path)
    if there != path:
        return os.access(there, os.W_OK | os.X_OK)
    return os.access(os.path.dirname(path), os.W_OK | os.X_OK) and os.lstat(path).st_uid == os.geteuid()


def _is_open(device: str) -> bool:
    """Whether group kvm may read and write a device, or everybody."""
    info = os.stat(device)
    try:
        ours = info.st_gid == grp.getgrnam("kvm").gr_gid
    except KeyError:
        ours = False
    return info.st_mode & 0o006 == 0o006 or (ours and info.st_mode & 0o060 == 0o060)


def _module(name: str) -> Dict[str, Any]:
    """Parameters as the loaded module shows them, and how many use it; {} when it is not loaded."""
    found: Dict[str, Any] = {}
    for entry in ("refcnt", "parameters"):
        path = os.path.join(_SYS, name, entry)
        try:
            if entry == "refcnt":
                found[entry] = int(_line(path))
            else:
                found[entry] = {key: _line(os.path.join(path, key)) for key in os.listdir(path)}
        except OSError:
            found[entry] = None
    return found if os.path.isdir(os.path.join(_SYS, name)) else {}


def _line(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _is_member(user: str, group: str) -> Any:
    """Whether `user` is in `group`; None when there is no such group, or user."""
    try:
        entry = grp.getgrnam(group)
        return user in entry.gr_mem or pwd.getpwnam(user).pw_gid == entry.gr_gid
    except KeyError:
        return None


# Files and trees


def _write(path: str, sha256: str, data_b64: str, offset: int, last: bool) -> Dict[str, Any]:
    """Write a file in pieces, beside its place; it moves there with the last one."""
    if offset == 0:
        with Record() as record:
            _begin(record, path, {"kind": "file", "sha256": sha256, **_ours(_MODE)})
    try:
        _append(path + PARTIAL, base64.b64decode(data_b64), offset)
        if last:
            _finish(path, sha256)
    except (OSError, Refused) as error:
        changes.remove(path + PARTIAL)  # first: the free space that is told is what there was for it
        if isinstance(error, OSError):
            error.filename = path
        raise
    return {}


def _ours(mode: int) -> Dict[str, int]:
    return {"mode": mode, "uid": os.geteuid(), "gid": os.getegid()}


def _begin(record: Record, path: str, now: Any, former: Any = None) -> Change:
    """Write down that `path` will be changed, keep what is there, and make the directories above."""
    former = former or state(path)
    if former["kind"] not in ("absent", "file", "link"):
        raise Refused(f"{path}: wanted a file or nothing there, got a {former['kind']}: move it away first")
    _make_directory(record, os.path.dirname(path))
    if former["kind"] == "file":
        record.keep(path, former["sha256"])
    return record.add({"kind": "path", "path": path, "former": former, "now": now})


def _make_directory(record: Record, path: str) -> None:
    if not os.path.isdir(path):
        _make_directory(record, os.path.dirname(path))
        record.add({"kind": "directory", "path": path})
        os.mkdir(path, 0o755)


def _append(partial: str, data: bytes, offset: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if offset else os.O_TRUNC)
    with open(os.open(partial, flags, 0o600), "ab") as file:
        if file.tell() != offset:
            raise Refused(f"{partial}: wanted the piece at {file.tell()}, got the one at {offset}")
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _finish(path: str, sha256: str) -> None:
    got = changes.digest(path + PARTIAL)
    if got != sha256:
        raise Refused(f"{path}: wanted sha256 {sha256}, got {got} after the upload")
    with Record() as record:
        change = next(old for old in reversed(record.changes) if old.get("path") == path)
        if state(path) != change["former"]:
            raise Refused(f"{path}: somebody else changed it during the upload")
        os.chmod(path + PARTIAL, _MODE)
        os.chown(path + PARTIAL, -1, os.getegid())
        os.replace(path + PARTIAL, path)


def _unpack(path: str, sha256: str, tarball: str) -> Dict[str, Any]:
    """Unpack a tarball that was uploaded: beside its place, then moved there whole."""
    partial = path + PARTIAL
    with Record() as record:
        if os.path.lexists(path):
            raise Refused(f"{path}: exists and is not what this tarball makes: name another place, or revert")
        change = _begin(record, path, None)
        changes.remove(partial)
        os.mkdir(partial, 0o755)
        try:
            _run(["tar", "-xf", tarball, "-C", partial, "--no-same-owner", "--no-same-permissions"])
        except CommandFailed:
            changes.remove(partial)
            raise
        change.update(now=state(partial), source=sha256)
        record.save()
        os.rename(partial, path)
    return {}


# Packages and groups


def _run(argv: List[str]) -> str:
    """What a program prints.

    :raises CommandFailed: it cannot be run, or ends with another status than 0; with its last words.
    """
    try:
        ended = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_ENVIRONMENT,
            check=False,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]}: {error.strerror}") from error
    if ended.returncode:
        words = (ended.stderr.strip() or ended.stdout.strip()).decode("utf-8", "replace")[-2000:]
        raise CommandFailed(f"{' '.join(argv)}: exit status {ended.returncode}: {words}")
    return ended.stdout.decode("utf-8", "replace")


def _listing(manager: str) -> Dict[str, str]:
    """Version of each installed package; empty for one of which only configuration files are left."""
    if manager == "apt":
        argv = ["dpkg-query", "-W", "-f", "${binary:Package} ${db:Status-Status} ${Version}\n"]
        rows = (line.split(" ") for line in _run(argv).splitlines())
        return {
            row[0]: row[2] if row[1] != "config-files" else "" for row in rows if row[1] != "not-installed"
        }
    lines = _run(["rpm", "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n"]).splitlines()
    return {name: version for name, _, version in (line.partition(" ") for line in lines)}


def _missing(manager: str, names: List[str]) -> List[str]:
    there = {name.partition(":")[0] for name, version in _listing(manager).items() if version}
    return [name for name in names if name.partition(":")[0] not in there]


def _install(manager: str, names: List[str]) -> Dict[str, Any]:
    before = _listing(manager)
    purge = not any(before.get(name) == "" for name in names)
    with Record() as record:
        fields = {"kind": "packages", "manager": manager, "names": names, "purge": purge, "added": None}
        change = record.add(fields)
        try:
            _run([*_INSTALL[manager], *names])
        finally:
            after = _listing(manager)
            change["added"] = sorted(name for name in after if after[name] and not before.get(name))
            record.save()
            if not change["added"]:
                record.drop(change)
    upgraded = [name for name in before if before[name] and after.get(name) not in (None, before[name])]
    left = _missing(manager, names)
    if left:
        raise CommandFailed(f"{manager} succeeded, but there is no package of the name: {', '.join(left)}")
    return {"added": change["added"], "upgraded": upgraded}


def _join(user: str, group: str) -> Dict[str, Any]:
    with Record() as record:
        change = record.add({"kind": "group", "user": user, "group": group})
        try:
            _run(["gpasswd", "-a", user, group])
        except CommandFailed:
            record.drop(change)
            raise
    return {}


def _command(argv: List[str]) -> Dict[str, Any]:
    """Run a program that makes files that were written take effect."""
    return {"stdout": _run(argv)}


# Taking back


def _undo(number: int) -> Dict[str, Any]:
    """Take back one change, as it is in the record, unless somebody else has touched it since."""
    with Record() as record:
        change = next((old for old in record.changes if old["number"] == number), None)
        if change is None:
            raise Refused(f"change {number} is not in the record: taken back by somebody else meanwhile")
        _UNDO[change["kind"]](record, change)
        record.drop(change)
    return {}


def _undo_path(record: Record, change: Change) -> None:
    path, former, now = change["path"], change["former"], change["now"]
    current = state(path)
    if current not in (former, now):
        raise Refused(f"{path}: left as it is: somebody else changed it after it was provisioned")
    changes.remove(path + PARTIAL)
    if current != former:
        record.put_back(path, former)


def _undo_directory(record: Record, change: Change) -> None:
    path = change["path"]
    if os.path.isdir(path):
        if os.listdir(path):
            raise Refused(f"{path}: left as it is: there is something of somebody else in it")
        os.rmdir(path)


def _undo_packages(record: Record, change: Change) -> None:
    """All that an installation added; of one that was interrupted, the packages that were asked for."""
    manager, added = change["manager"], change["added"]
    there = _listing(manager)
    names = [name for name in (change["names"] if added is None else added) if there.get(name)]
    if names:
        remove = ["dpkg", "--purge" if change["purge"] else "--remove"] if manager == "apt" else ["rpm", "-e"]
        _run([*remove, "--", *names])


def _undo_group(record: Record, change: Change) -> None:
    if _is_member(change["user"], change["group"]):
        _run(["gpasswd", "-d", change["user"], change["group"]])


_DO: Dict[str, Callable[..., Dict[str, Any]]] = {
    "who": _who,
    "look": _look,
    "write": _write,
    "unpack": _unpack,
    "install": _install,
    "join": _join,
    "command": _command,
    "undo": _undo,
}
_UNDO: Dict[str, Callable[[Record, Change], None]] = {
    "path": _undo_path,
    "directory": _undo_directory,
    "packages": _undo_packages,
    "group": _undo_group,
}
