#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpack the QEMU of the distribution's backports beside the system's, and print the path to start it by.

Nothing of the system changes: apt runs with lists, cache and an empty package state of its own, downloads
from the mirror that the machine is configured for, and checks signatures as ever. Debian's QEMU is built to
look for data and modules below /usr only, where the system's lie, so a wrapper tells it about its own.

A tree that is there is taken as it is; remove its directory to have a newer one fetched.

Exit status: 0 with the path on stdout, 2 for a wrong call, 3 when this QEMU cannot be had here.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_UNAVAILABLE = 3
_PACKAGE = "qemu-system-x86"
_NAME = "qemu-system-x86_64"
_WRAPPER = """\
#!/bin/sh
QEMU_MODULE_DIR={modules}
export QEMU_MODULE_DIR
exec {binary} -L {data} -L {seabios} "$@"
"""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S = 600.0


class UnavailableError(Exception):
    """The second QEMU cannot be had on this machine; the text says why."""


def cache_directory() -> Path:
    """Where the trees lie: ``pytest-seves-generations`` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path counts as unset.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "pytest-seves-generations"


def backports() -> str:
    """The name of this distribution's backports, such as ``bookworm-backports``."""
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise UnavailableError(
            f"this system is {release.get('PRETTY_NAME', 'unknown')}; wanted a release of Debian, whose"
            " backports hold a newer QEMU"
        )
    return f"{codename}-backports"


def fetch(cache: Path) -> Path:
    """The backports' QEMU below `cache`, ready to be started; downloaded when it is not there yet.

    A tree appears under its name only when it is whole; a second caller waits for the first.

    :raises UnavailableError: no such package, no network, no apt, or a bad signature.
    """
    if platform.machine() != "x86_64":
        raise UnavailableError(f"this machine is {platform.machine()}; SEV-ES is a thing of x86_64")
    try:
        suite = backports()
    except OSError as error:
        raise UnavailableError(f"no os-release file tells what system this is: {error}") from error
    tree = cache / suite
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{suite}.lock"):
            if not _binary(tree).is_file():
                _unpack_into(tree, suite)
            return _wrapper(tree)
    except OSError as error:
        raise UnavailableError(
            f"cannot make {tree}: {error}. Set XDG_CACHE_HOME to a place of your own"
        ) from error


def _binary(tree: Path) -> Path:
    return tree / "usr/bin" / _NAME


def _wrapper(tree: Path) -> Path:
    """The script that starts the binary; written again when the tree has been moved."""
    parts = {
        "modules": tree / "usr/lib/x86_64-linux-gnu/qemu",
        "binary": _binary(tree),
        "data": tree / "usr/share/qemu",
        "seabios": tree / "usr/share/seabios",
    }
    text = _WRAPPER.format_map({name: shlex.quote(str(path)) for name, path in parts.items()})
    wrapper = tree / _NAME
    if not wrapper.is_file() or wrapper.read_text() != text:
        fresh = tree / f".{_NAME}"
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.rename(wrapper)  # another run may be starting the old one
    return wrapper


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack_into(tree: Path, suite: str) -> None:
    for abandoned in tree.parent.glob(f".{suite}-*"):  # by a run that was killed: the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    # Not below the cache directory: root's apt downloads as a user who may not enter a home.
    with (
        tempfile.TemporaryDirectory(prefix="pytest-seves-apt-") as private,
        tempfile.TemporaryDirectory(prefix=f".{suite}-", dir=tree.parent) as scratch,
    ):
        apt = Path(private)
        apt.chmod(0o755)
        unpacked = Path(scratch) / "tree"
        unpacked.mkdir()
        for package in _download(apt, suite):
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        _run([str(_binary(unpacked)), "--version"])
        shutil.rmtree(tree, ignore_errors=True)  # what a meddler left: a whole one would have been taken
        unpacked.rename(tree)


def _download(apt: Path, suite: str) -> list[Path]:
    """The packages of QEMU and all that it depends on, the system's own libraries aside."""
    config = _configure(apt, suite)
    update = ["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"]
    _run(update, config)
    install = ["apt-get", "-q", "-y", "--download-only", "--no-install-recommends"]
    _run([*install, "-t", suite, "install", _PACKAGE], config)
    packages = sorted((apt / "cache/archives").glob("*.deb"))
    if not any(package.name.startswith(f"{_PACKAGE}_") for package in packages):
        raise UnavailableError(f"apt-get downloaded no {_PACKAGE} from {suite}")
    return packages


def _configure(apt: Path, suite: str) -> Path:
    """Write the private configuration: the machine's ways to download, and nothing else of it."""
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(_sources(suite))
    acquire = [line for line in _run(["apt-config", "dump"]).splitlines() if line.startswith("Acquire::")]
    settings = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",  # holds hooks that refresh the system's catalogues
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::State::extended_states": apt / "extended_states",
        "Dir::Cache": apt / "cache",
        "Dir::Cache::archives": apt / "cache/archives",
        "Dir::Log": apt,
        "Acquire::Languages": "none",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Architecture": "amd64",
    }
    config = apt / "apt.conf"
    lines = [
        *acquire,
        "#clear Acquire::Languages;",
        *(f'{key} "{value}";' for key, value in settings.items()),
    ]
    config.write_text("\n".join(lines) + "\n")
    return config


def _sources(suite: str) -> str:
    """The release, its updates and its backports, from the mirror that the machine has for the release."""
    codename = suite.removesuffix("-backports")
    told = _run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    sites = [site for site, *rest in map(str.split, told.splitlines()) if rest == [codename, "main"]]
    if not sites:
        raise UnavailableError(f"apt has no mirror configured for {codename} main (apt-get indextargets)")
    options = f"arch=amd64 signed-by={_KEYRING}" if _KEYRING.is_file() else "arch=amd64"
    names = (codename, f"{codename}-updates", suite)
    return "".join(f"deb [{options}] {sites[0]} {name} main\n" for name in names)


def _run(command: list[str], config: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    if config is not None:
        environment["APT_CONFIG"] = str(config)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{' '.join(command)}: not done after {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said")[-2000:]
        raise UnavailableError(f"{' '.join(command)}: exit status {done.returncode}:\n{said}")
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Fetch and print the path."""
    parser = argparse.ArgumentParser(
        description="Unpack the backports' QEMU into a cache and print its path."
    )
    parser.add_argument("--cache", type=Path, default=cache_directory(), help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        binary = fetch(chosen.cache.absolute())
    except UnavailableError as error:
        print(f"fetch: no second QEMU: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    print(binary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
