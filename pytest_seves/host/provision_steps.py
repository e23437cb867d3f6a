# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps that bring a host to what its lab file declares: what is, what is wanted, what will be done."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_seves.errors import HostError
from pytest_seves.host.client import AgentClient
from pytest_seves.host.inventory import LabHost
from pytest_seves.host.inventory_provision import MANAGERS, FileToPut, Provision, VmmBuild

MODPROBE = "/etc/modprobe.d/pytest-seves.conf"
UDEV = "/etc/udev/rules.d/60-pytest-seves.rules"
LIMITS = "/etc/security/limits.d/60-pytest-seves.conf"

_HEADER = "# Written by pytest --sev-provision=apply; taken back by --sev-provision=revert.\n"
_RULES = "".join(f'KERNEL=="{device}", GROUP="kvm", MODE="0660"\n' for device in ("kvm", "sev"))
_PIECE = 4 << 20
_QUICK_S = 60.0
_PIECE_S = 300.0
_LONG_S = 1800.0

Look = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing of the host.

    :ivar what: the thing.
    :ivar state: how it is.
    :ivar wanted: how it is to be.
    :ivar todo: what will be done; empty when there is nothing to do.
    :ivar doing: the same while it is done.
    :ivar act: does it, by an agent that may; what it returns is worth telling.
    :ivar needs_root: whether the user alone may not.
    :ivar by_hand: this program may not do it: `todo` says who, or what must allow it.
    """

    what: str
    state: str
    wanted: str
    todo: str = ""
    doing: str = ""
    act: Callable[[AgentClient], str | None] | None = None
    needs_root: bool = True
    by_hand: bool = False


def ask(agent: AgentClient, do: str, timeout_s: float = _QUICK_S, **args: Any) -> dict[str, Any]:
    """One operation of :mod:`pytest_seves.agent.provision`.

    :raises AgentRemoteError: it was refused or failed; nothing is left half done.
    """
    return agent.call("provision", {"do": do, "timeout_s": timeout_s, **args})


def look(agent: AgentClient, entry: LabHost) -> Look:
    """What the host is, as far as the lab file speaks of it."""
    declared = entry.provision or Provision()
    build = declared.vmm or VmmBuild()
    paths = [MODPROBE, UDEV, LIMITS, *(each.path for each in declared.file), *filter(None, [build.into])]
    return ask(
        agent,
        "look",
        _LONG_S,  # it reads images to hash them
        paths=paths,
        programs=[build.path] if build.path else [],
        packages=dict(declared.packages),
        user=entry.user,
        groups=list(declared.groups),
    )


def steps(entry: LabHost, seen: Look, mine: Look) -> Iterator[Step]:
    """The steps, in the order in which they are done.

    :param seen: what the agent that sees most saw.
    :param mine: what the user's own agent saw, who needs no root where he may write.
    """
    declared = entry.provision or Provision()
    if declared.packages:
        yield _packages(entry, declared, seen)
    for group in declared.groups:
        yield _group(entry, group, seen)
    if declared.udev:
        yield _config("udev rule", UDEV, _HEADER + _RULES, seen, mine)
        yield _devices(seen)
    if declared.memlock:
        text = f"{_HEADER}{entry.user} - memlock {declared.memlock}\n"
        yield _config("memlock (from the next login)", LIMITS, text, seen, mine)
    for each in declared.file:
        yield _file(entry, each, seen, mine)
    if declared.vmm:
        yield _vmm(entry, declared.vmm, seen, mine)
    if declared.module_parameters:
        rows = (
            f"options {module} {' '.join(f'{key}={value}' for key, value in parameters)}\n"
            for module, parameters in declared.module_parameters
        )
        yield _config("module parameters", MODPROBE, _HEADER + "".join(rows), seen, mine)
        yield from _loaded(declared, seen)


def _packages(entry: LabHost, declared: Provision, seen: Look) -> Step:
    manager, missing = seen["manager"], seen["missing"]
    by_manager = dict(declared.packages)
    wanted = ", ".join(by_manager.keys() - {"any"} or MANAGERS)
    if manager is None or not by_manager.keys() & {manager, "any"}:
        text = f"provision.packages: wanted one of the package managers {wanted}; got {manager or 'none'}"
        raise HostError(text, host=entry.name)
    names = by_manager.get(manager, by_manager.get("any", ()))
    state = f"missing: {', '.join(missing)}" if missing else "all installed"

    def act(agent: AgentClient) -> str | None:
        upgraded = ask(agent, "install", _LONG_S, manager=manager, names=missing)["upgraded"]
        return f"upgraded for it, which is not taken back: {', '.join(upgraded)}" if upgraded else None

    count = f"{len(missing)} package{'s' * (len(missing) > 1)}"
    todo = f"install {count} with {manager}" if missing else ""
    return Step("packages", state, ", ".join(names), todo, f"installing {count}: {', '.join(missing)}", act)


def _group(entry: LabHost, group: str, seen: Look) -> Step:
    what, member = f"group {group} (from the next login)", seen["groups"][group]
    if member is None and not seen["missing"]:  # a package may bring the group
        raise HostError(f"provision.groups: no group {group!r} or no user {entry.user!r}", host=entry.name)

    def act(agent: AgentClient) -> None:
        ask(agent, "join", user=entry.user, group=group)

    todo = "" if member else f"add {entry.user} to {group}"
    state = f"{entry.user} is {'a' if member else 'no'} member"
    return Step(what, state, f"{entry.user} a member", todo, f"adding {entry.user} to group {group}", act)


def _config(what: str, path: str, text: str, seen: Look, mine: Look) -> Step:
    data = text.encode()

    def act(agent: AgentClient) -> None:
        put(agent, path, hashlib.sha256(data).hexdigest(), iter([data]))

    state, todo = _difference(seen["paths"][path], hashlib.sha256(data).hexdigest())
    return Step(f"{what} {path}", state, _shown(text), todo, f"writing {path}", act, not _may(mine, path))


def _devices(seen: Look) -> Step:
    """A rule is for devices to come: those that are there are handled again."""
    closed = seen["closed"]

    def act(agent: AgentClient) -> None:
        ask(agent, "command", argv=["udevadm", "control", "--reload"])
        ask(agent, "command", argv=["udevadm", "trigger", "--settle", *(f"--name-match={d}" for d in closed)])

    state = f"{', '.join(closed)}: not for group kvm" if closed else "for group kvm, as far as they are there"
    todo = "have udev handle them again" if closed else ""
    return Step("/dev/kvm, /dev/sev", state, "for group kvm", todo, "triggering udev", act)


def _shown(text: str) -> str:
    return "; ".join(line for line in text.splitlines() if not line.startswith("#"))


def _may(mine: Look, path: str) -> bool:
    return bool(mine["paths"][path]["writable"])


def _difference(there: dict[str, Any], sha256: str) -> tuple[str, str]:
    """What a path is now, and what is to be done about it."""
    kind = there["kind"]
    if kind == "file" and there["sha256"] == sha256:
        return "as wanted", ""
    shown = f"sha256 {there['sha256'][:12]}..." if kind == "file" else kind
    return shown, "write it" if kind == "absent" else "replace it, and keep what is there"


def _file(entry: LabHost, each: FileToPut, seen: Look, mine: Look) -> Step:
    state, todo = _difference(seen["paths"][each.path], each.sha256)
    if todo:
        _check_source(entry, each.source, each.sha256)

    def act(agent: AgentClient) -> None:
        put(agent, each.path, each.sha256, _pieces(each.source))

    doing = f"uploading {each.source.name}{_size(each.source) if todo else ''} to {each.path}"
    wanted = f"sha256 {each.sha256[:12]}..."
    return Step(f"file {each.path}", state, wanted, todo, doing, act, not _may(mine, each.path))


def _vmm(entry: LabHost, build: VmmBuild, seen: Look, mine: Look) -> Step:
    if build.path:
        there = seen["programs"][build.path]
        todo = "" if there else "install it, or name a tarball in [provision.vmm]"
        state = "there" if there else "no program there"
        return Step(f"VMM {build.path}", state, "a program", todo, needs_root=False, by_hand=True)
    into, sha256, tarball = str(build.into), str(build.sha256), build.tarball or Path()
    what, wanted = f"VMM in {into}", f"{tarball.name}, sha256 {sha256[:12]}..."
    there = {key: value for key, value in seen["paths"][into].items() if key != "writable"}
    if any(
        old.get("source") == sha256 and old["now"] == there for old in [*seen["changes"], *mine["changes"]]
    ):
        return Step(what, "as unpacked", wanted)
    if there["kind"] != "absent":
        todo = "choose another directory, revert, or move it away: it is not as this tarball was unpacked"
        return Step(what, "something else", wanted, todo, by_hand=True)
    _check_source(entry, tarball, sha256)

    def act(agent: AgentClient) -> None:
        staged = _stage(agent, tarball, sha256)
        ask(agent, "unpack", _LONG_S, path=into, sha256=sha256, tarball=staged)

    doing = f"uploading and unpacking {tarball.name}{_size(tarball)} to {into}"
    return Step(what, "absent", wanted, "unpack it", doing, act, not _may(mine, into))


def _loaded(declared: Provision, seen: Look) -> Iterator[Step]:
    """Parameters take effect when a module is loaded: again, if the file allows that and nobody uses it."""
    for module, parameters in declared.module_parameters:
        now = seen["modules"][module].get("parameters")
        what = f"loaded {module}"
        wanted = " ".join(f"{key}={value}" for key, value in parameters)
        if now is None:
            yield Step(what, "not loaded, or shows no parameters", f"{wanted} once it is loaded")
            continue
        state = " ".join(f"{key}={now.get(key, '?')}" for key, _ in parameters)
        if all(_same(now.get(key), value) for key, value in parameters):
            yield Step(what, state, wanted)
        elif not declared.reload_modules:
            yield Step(what, state, wanted, "reload it or reboot: reload_modules is not set", by_hand=True)
        elif users := seen["modules"]["kvm_amd"].get("refcnt"):
            yield Step(what, state, wanted, f"reboot, or end the {users} users of /dev/kvm", by_hand=True)
        else:
            # modprobe refuses to remove a module that came into use meanwhile
            argvs = [["modprobe", "-r", "kvm_amd"], ["modprobe", "kvm_amd"]]
            if module == "ccp":
                argvs[1:1] = [["modprobe", "-r", "ccp"], ["modprobe", "ccp"]]

            def act(agent: AgentClient, argvs: list[list[str]] = argvs) -> None:
                for argv in argvs:
                    ask(agent, "command", argv=argv)

            yield Step(what, state, wanted, "load it again", f"loading {module} again", act)


def _same(now: str | None, wanted: str) -> bool:
    """Whether a parameter has its value: the kernel shows a boolean as Y or N, or as 1 or 0."""
    meaning = {"Y": "1", "N": "0", "y": "1", "n": "0", "on": "1", "off": "0"}
    return now is None or meaning.get(now, now) == meaning.get(wanted, wanted)


def _check_source(entry: LabHost, source: Path, sha256: str) -> None:
    """Refuse to bring a file that is not what was pinned.

    :raises HostError: it is missing, cannot be read, or another.
    """
    try:
        with source.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        text = f"provision: {source}: wanted a file of this machine: {error.strerror}"
        raise HostError(text, host=entry.name) from error
    if got != sha256:
        raise HostError(f"provision: {source}: wanted sha256 {sha256}, got {got}", host=entry.name)


def _size(source: Path) -> str:
    return f" ({source.stat().st_size / (1 << 20):.1f} MiB)"


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def put(agent: AgentClient, path: str, sha256: str, pieces: Iterator[bytes]) -> None:
    """Write a file on the host, piece by piece."""
    for piece, offset, last in _placed(pieces):
        data = base64.b64encode(piece).decode()
        ask(agent, "write", _PIECE_S, path=path, sha256=sha256, data_b64=data, offset=offset, last=last)


def _placed(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, int, bool]]:
    piece, offset = next(pieces, b""), 0
    while True:
        following = next(pieces, None)
        yield piece, offset, following is None
        if following is None:
            return
        offset += len(piece)
        piece = following


def _stage(agent: AgentClient, source: Path, sha256: str) -> str:
    """Bring a file into the agent's own directory; its path there."""
    path = ""
    for piece, offset, last in _placed(_pieces(source)):
        data = base64.b64encode(piece).decode()
        request = {"name": sha256, "sha256": sha256, "data_b64": data, "offset": offset, "last": last}
        path = str(agent.call("file.put", request, timeout_s=_PIECE_S)["path"])
    return path
