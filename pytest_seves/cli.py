# SPDX-License-Identifier: GPL-2.0-or-later
"""The console script ``pytest-seves``: things to do beside running tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__
from .errors import SevesError
from .report import commands as reports
from .report import diff_command


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it did its work, 1 when it could not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="pytest-seves", description=__doc__.partition("``: ")[2])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    hosts = commands.add_parser("hosts", help="list the hosts of a lab directory, and check their files")
    hosts.add_argument("--sev-lab", type=Path, default=Path("lab"), metavar="DIR")
    agent = commands.add_parser("agent", help="write the program that is put on hosts to a file")
    agent.add_argument("file", type=Path)
    hosts.set_defaults(run=lambda given: _hosts(given.sev_lab))
    agent.set_defaults(run=lambda given: _agent(given.file))
    reports.declare(commands)
    diff_command.declare(commands)
    given = parser.parse_args(arguments)
    try:
        return int(given.run(given))
    except (SevesError, OSError) as error:
        print(f"pytest-seves: {error}", file=sys.stderr)
        return 1


def _hosts(lab: Path) -> int:
    from .host.inventory import list_hosts, load_host

    status = 0
    for name in list_hosts(lab):
        try:
            host = load_host(name, lab)
        except SevesError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            where = f"model, {host.model}" if host.model else f"{host.user}@{host.address}:{host.port}"
            print(f"{name:<16} {where}")
    return status


def _agent(file: Path) -> int:
    from .host.agentzip import agent_zip

    archive = agent_zip()
    file.write_bytes(archive.data)
    print(f"{file}: sha256 {archive.sha256}")
    return 0
