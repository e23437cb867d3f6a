# SPDX-License-Identifier: GPL-2.0-or-later
"""What a whole run of the suites has: collected once more, by a process that leaves nothing out.

A selection has too many ways to be made (paths, -k, -m, --deselect, --ignore, -x, plugins) to be read off the
options of a run. So the suites are collected again, with the same hosts, vCPU counts and policies and nothing
else, before anything is deselected, and the report compares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from .listed import LISTED
from .options import Options
from .report.plan import Plan, hashes, package_sha256

_LIMIT_S = 300.0
_OURS = "PYTEST_ADDOPTS", "PYTEST_PLUGINS"


def plan(config: pytest.Config, options: Options, catalogues: Iterable[Path]) -> Plan:
    """The plan of the suites of these catalogues."""
    folders = sorted({path.parent for path in catalogues})
    root = config.rootpath
    files = hashes(folders, root) | _above(config, folders)
    tests, why = _collect(config, options, folders)
    environment = {name: os.environ[name] for name in _OURS if os.environ.get(name)}
    return Plan(tests, why, files, package_sha256(), _plugins(config), environment)


def _plugins(config: pytest.Config) -> dict[str, str]:
    """Installed ones by distribution, and modules that were named by -p or a variable."""
    manager = config.pluginmanager
    installed = {info.project_name: info.version for _, info in manager.list_plugin_distinfo()}
    theirs = [plugin for plugin, _ in manager.list_plugin_distinfo()]
    modules = [plugin for _, plugin in manager.list_name_plugin() if isinstance(plugin, ModuleType)]
    named = [module.__name__ for module in modules if not any(module is plugin for plugin in theirs)]
    own = ("_pytest.", "xdist.", "pytest_seves.")
    return {name: "" for name in named if not name.startswith(own) and "conftest" not in name} | installed


def _above(config: pytest.Config, folders: Iterable[Path]) -> dict[str, str]:
    """The ini file, and what pytest reads of the folders above."""
    from .evidence.folder import Folder

    root = config.rootpath
    above = {root, *(up for folder in folders for up in folder.parents if up.is_relative_to(root))}
    files = [folder / "conftest.py" for folder in above] + [config.inipath or root / "pytest.ini"]
    there = sorted(file for file in files if file.is_file())
    return {os.path.relpath(file, root): Folder.digest(file.read_bytes()) for file in there}


def _collect(
    config: pytest.Config, options: Options, folders: Iterable[Path]
) -> tuple[dict[str, str] | None, str]:
    with tempfile.TemporaryDirectory(prefix="seves-plan-") as place:
        file = Path(place) / "plan.json"
        argv = [sys.executable, "-m", "pytest", "-p", "pytest_seves.listed", *map(str, folders)]
        argv += ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
        argv += [f"--confcutdir={config.rootpath}"] + ([f"-c={config.inipath}"] if config.inipath else [])
        argv += [f"--sev-host={name}" for name in options.hosts] + [f"--sev-lab={options.lab}"]
        argv += [f"--sev-vcpus={','.join(map(str, options.vcpus))}"]
        argv += [f"--sev-policy={','.join(map(hex, options.policies))}"]
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        environment[LISTED] = str(file)
        try:
            done = subprocess.run(
                argv,
                cwd=config.rootpath,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT_S,
                check=False,
            )
            if done.returncode == pytest.ExitCode.OK and file.exists():
                return json.loads(file.read_text(encoding="utf-8")), ""
        except subprocess.TimeoutExpired:
            return None, f"collecting the suites took longer than {_LIMIT_S:g} s"
    last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
    return None, f"collecting the suites ended with {done.returncode}: {''.join(last)[:300]}"
