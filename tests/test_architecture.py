# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules a program can check: who imports whom, size, licence, the Python that the agent runs on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "pytest_seves"

EVERYTHING = {"agent", "cli", "errors", "evidence", "guest", "host", "measurement", "model", "progress"}
EVERYTHING |= {"report", "spec", "text"}
#: pytest's side: the files directly in the package that a run is made of. They alone know pytest.
PYTEST_SIDE = {
    "plugin",
    "options",
    "fixtures",
    "collection",
    "run",
    "hosts",
    "verdicts",
    "blocked",
    "foreseen",
    "ledger",
    "planned",
    "listed",
    "qualifying",
    "replay",
    "results",
    "source",
    "properties",
    "reports",
    "allure_results",
    "scheduling",
    "screen",
    "hookspecs",
}
#: What each part of the package may import of the rest of it. A part that is not listed here fails.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "spec": set(),
    "text": set(),
    "errors": {"text"},
    "progress": set(),
    "measurement": {"spec", "errors"},
    "evidence": {"spec", "errors", "text"},
    "agent": {"spec"},  # nothing else travels to the host
    "model": {"spec"},  # a mistake shared with guest/ or evidence/ would cancel itself out
    # both ends speak agent/frames.py
    "host": {"spec", "errors", "measurement", "evidence", "agent", "progress", "text"},
    # a launch runs over a connection
    "guest": {"spec", "errors", "measurement", "evidence", "host", "progress", "text"},
    "report": {"spec", "errors", "evidence", "host", "text"},  # of host, what decodes its facts
    "cli": {"spec", "errors", "evidence", "host", "report"},
    **dict.fromkeys(PYTEST_SIDE, EVERYTHING | PYTEST_SIDE),
}

#: Python 3.9's standard library, as far as it differs from the one running this.
STDLIB = sys.stdlib_module_names - {"tomllib"}
#: Parts that live on the standard library, and what else they may import.
BARE_PARTS: dict[str, set[str]] = {
    "spec": set(),
    "agent": set(),
    "errors": set(),
    "text": set(),
    "measurement": {"cryptography"},  # the guest owner's keys
    "evidence": set(),
    "model": {"cryptography", "unicorn"},
}
#: Keyword arguments that Python 3.9 does not know, by the function that takes them.
NEWER_KEYWORDS = {"dataclass": {"slots", "kw_only"}, "field": {"kw_only"}, "zip": {"strict"}}
CEILING_LINES = 400


@dataclass(frozen=True)
class Module:
    """A Python file of this project, parsed."""

    path: Path

    @property
    def part(self) -> str:
        """The package below pytest_seves/, or the file's name where it is directly in it."""
        return self.path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    def tree(self, feature_version: tuple[int, int] | None = None) -> ast.Module:
        """The syntax tree, as the given Python would read it."""
        return ast.parse(self.path.read_bytes(), filename=str(self.path), feature_version=feature_version)

    def imports(self) -> Iterator[str]:
        """Every imported name in full, wherever in the file it stands."""
        for node in ast.walk(self.tree()):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = ".".join([*self._relative_to(node.level), *filter(None, [node.module])])
                yield from (f"{source}.{alias.name}" for alias in node.names)

    def _relative_to(self, level: int) -> tuple[str, ...]:
        return self.path.relative_to(PROJECT).parts[:-level] if level else ()

    def parts_imported(self) -> set[str]:
        """Parts of pytest_seves that this file imports."""
        names = (name.split(".") for name in self.imports())
        return {name[1] for name in names if name[0] == "pytest_seves" and len(name) > 1} - {"__version__"}

    def packages_imported(self) -> set[str]:
        """Top-level packages from outside this project that this file imports."""
        return {name.split(".")[0] for name in self.imports()} - {"pytest_seves"}


def modules(*below: str) -> list[object]:
    """The project's Python files below these directories, as test parameters."""
    files = sorted(file for top in below for file in (PROJECT / top).rglob("*.py"))
    return [pytest.param(Module(file), id=str(file.relative_to(PROJECT))) for file in files]


@pytest.mark.parametrize("module", modules("pytest_seves"))
def test_imports_only_what_its_part_may(module: Module) -> None:
    """Each part of the package imports only the parts that it may know."""
    assert module.parts_imported() - {module.part} <= MAY_IMPORT[module.part]


@pytest.mark.parametrize("module", modules("pytest_seves"))
def test_only_pytest_s_side_imports_pytest(module: Module) -> None:
    """What launches, decodes and judges can be used and tested without pytest."""
    imported = module.packages_imported() & {"pytest", "_pytest", "xdist"}
    assert not imported or module.part in PYTEST_SIDE


@pytest.mark.parametrize("module", modules("pytest_seves"))
def test_only_the_transport_imports_paramiko(module: Module) -> None:
    """paramiko is imported by host/ssh.py alone: everything else sees the transport."""
    assert "paramiko" not in module.packages_imported() or module.path == PACKAGE / "host" / "ssh.py"


@pytest.mark.parametrize("module", modules(*(f"pytest_seves/{part}" for part in BARE_PARTS)))
def test_lives_on_the_standard_library(module: Module) -> None:
    """What computes, what travels to a host and what models one needs no third-party package."""
    assert module.packages_imported() <= STDLIB | BARE_PARTS[module.part]


@pytest.mark.parametrize("module", modules("suites"))
def test_suites_do_not_know_the_model(module: Module) -> None:
    """A conformance test judges evidence; it knows neither the model nor what travels to a host."""
    assert not module.parts_imported() & {"model", "agent"}


@pytest.mark.parametrize("module", modules("pytest_seves/agent", "pytest_seves/spec"))
def test_reads_as_python_3_9(module: Module) -> None:
    """What travels to a host parses as Python 3.9 and passes no newer keyword argument."""
    calls = (node for node in ast.walk(module.tree((3, 9))) if isinstance(node, ast.Call))
    newer = [
        f"line {call.lineno}: {call.func.id}({keyword.arg}=)"
        for call in calls
        if isinstance(call.func, ast.Name)
        for keyword in call.keywords
        if keyword.arg in NEWER_KEYWORDS.get(call.func.id, set())
    ]
    assert newer == []


@pytest.mark.parametrize("module", modules("pytest_seves", "suites"))
def test_one_noun_per_module(module: Module) -> None:
    """A module past 400 lines is two modules; tables that mirror a document are excepted."""
    lines = len(module.path.read_text().splitlines())
    assert lines <= CEILING_LINES or module.path.parent == PACKAGE / "spec"


@pytest.mark.parametrize("module", modules("pytest_seves", "suites", "tests", "bench", ".ci"))
def test_names_its_licence(module: Module) -> None:
    """The licence is the first thing in each file, below the interpreter where there is one."""
    lines = [line for line in module.path.read_text().splitlines()[:2] if not line.startswith("#!")]
    assert lines[:1] == ["# SPDX-License-Identifier: GPL-2.0-or-later"]


@pytest.mark.parametrize("module", modules("pytest_seves/report"))
def test_a_report_takes_of_a_host_its_facts_alone(module: Module) -> None:
    """It decodes the facts in a bundle with what decodes those of a host, and knows no other way to one."""
    taken = {name.removeprefix("pytest_seves.host.") for name in module.imports() if ".host." in name}
    assert {name.partition(".")[0] for name in taken} <= {"facts", "facts_file"}


def test_a_run_without_a_report_loads_nothing_for_one() -> None:
    """Neither a run nor the console script imports templates, signatures or plots before they are needed."""
    program = (
        "import sys, json; import pytest_seves.run, pytest_seves.qualifying, pytest_seves.cli;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=True)
    assert not set(json.loads(result.stdout)) & {"jinja2", "securesystemslib", "leather", "fastjsonschema"}


def test_the_unused_plugin_loads_nothing_heavy() -> None:
    """Importing the plugin leaves SSH, event loops and cryptography alone until a host is named."""
    program = (
        "import pytest, sys, json; before = set(sys.modules); import pytest_seves.plugin;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert not loaded & {"paramiko", "asyncio", "cryptography", "multiprocessing", "ctypes"}
