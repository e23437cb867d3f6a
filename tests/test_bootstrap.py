# SPDX-License-Identifier: GPL-2.0-or-later
"""./bootstrap against a machine of stand-ins: what it checks, installs, repeats and passes on.

Python, apt-get and id are small scripts that write down how they were called; sh and its tools are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = ("cat", "dirname", "flock", "mkdir", "readlink", "rm", "sed", "sha256sum", "sh", "touch", "tr")

#: Answers what bootstrap asks of a Python; makes itself the environment's Python; is pytest at the end.
PYTHON = """#!/bin/sh
case "$1 ${2:-}" in
    "-c "*) exit 0 ;;
    "-V "*) echo Python 3.11.0 ;;
    "-m venv")
        echo "venv $3" >>"$CALLS"
        mkdir -p "$4/bin"; cat "$0" >"$4/bin/python"; chmod +x "$4/bin/python" ;;
    "-m pip")
        [ "$3" = install ] || exit 0
        echo pip >>"$CALLS"
        if [ -n "${PIP_HOOK:-}" ]; then eval "$PIP_HOOK"; fi ;;
    "-m pytest") shift 2; printf '<%s>' "$@"; pwd; exit "${PYTEST_STATUS:-0}" ;;
esac
"""
APT_GET = """#!/bin/sh
printf 'apt-get' >>"$CALLS"
for word in "$@"; do case $word in -*|DPkg*) ;; *) printf ' %s' "$word" >>"$CALLS" ;; esac; done
echo >>"$CALLS"
case " $* " in *" update "*) : >"$CALLS.updated"; exit 0 ;; esac
[ -e "$CALLS.updated" ] || exit 100
[ -z "${APT_BROKEN:-}" ] || exit 0
echo "#!/bin/sh" >"$BIN/qemu-system-x86_64"; chmod +x "$BIN/qemu-system-x86_64"
"""


@dataclass(frozen=True)
class Machine:
    """A directory with a clone in it and the only commands that bootstrap finds."""

    top: Path

    @property
    def clone(self) -> Path:
        """The source tree."""
        return self.top / "clone"

    @property
    def calls(self) -> list[str]:
        """What the stand-ins were asked to do, in order."""
        log = self.top / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def command(self, name: str, text: str) -> None:
        """Put a stand-in on PATH."""
        path = self.top / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a call; an empty value removes the variable."""
        values = {
            "PATH": str(self.top / "bin"),
            "CALLS": str(self.top / "calls"),
            "BIN": str(self.top / "bin"),
            "SEVES_PYTHON": str(self.top / "bin" / "python3"),
            **more,
        }
        return {name: value for name, value in values.items() if value}

    def bootstrap(
        self, *arguments: str, script: Path | None = None, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Call bootstrap to its end."""
        return subprocess.run(
            [str(script or self.clone / "bootstrap"), *arguments],
            cwd=cwd or self.clone,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(project: Path, tmp_path: Path) -> Machine:
    """A machine with everything but the virtual environment."""
    machine = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    machine.clone.mkdir()
    for name in ("bootstrap", "pyproject.toml"):
        shutil.copy(project / name, machine.clone)
    for tool in (*TOOLS, "chmod"):
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / "bin" / tool).symlink_to(found)
    machine.command("python3", PYTHON)
    machine.command("qemu-system-x86_64", "#!/bin/sh\n")
    machine.command("apt-get", APT_GET)
    machine.command("id", "#!/bin/sh\necho 1000\n")
    return machine


def test_no_arguments_print_the_usage(machine: Machine) -> None:
    """Called with nothing, it says how to call it and touches nothing."""
    result = machine.bootstrap()
    assert result.returncode == 2
    assert "./bootstrap model" in result.stderr
    assert machine.calls == []


def test_unusable_python_is_named(machine: Machine) -> None:
    """A Python that cannot make environments stops the set-up with its name."""
    result = machine.bootstrap("tests", SEVES_PYTHON="/nonexistent/python")
    assert result.returncode == 3
    assert "/nonexistent/python" in result.stderr


def test_missing_package_is_named_to_an_ordinary_user(machine: Machine) -> None:
    """Without root it prints the exact command, stops with 3 and changes nothing."""
    (machine.top / "bin" / "qemu-system-x86_64").unlink()
    result = machine.bootstrap("model")
    assert result.returncode == 3
    assert (
        "sudo apt-get update && sudo apt-get install --no-install-recommends qemu-system-x86" in result.stderr
    )
    assert machine.calls == []


def test_missing_package_without_apt_is_named(machine: Machine) -> None:
    """On another distribution it says what is missing, by the Debian name."""
    (machine.top / "bin" / "qemu-system-x86_64").unlink()
    (machine.top / "bin" / "apt-get").unlink()
    result = machine.bootstrap("model")
    assert result.returncode == 3
    assert "qemu-system-x86" in result.stderr


def test_missing_package_is_installed_by_root(machine: Machine) -> None:
    """As root it installs, fetching the package lists only when the first try fails."""
    (machine.top / "bin" / "qemu-system-x86_64").unlink()
    machine.command("id", "#!/bin/sh\necho 0\n")
    result = machine.bootstrap("model")
    assert result.returncode == 0, result.stderr
    install = "apt-get install qemu-system-x86"
    assert machine.calls == [install, "apt-get update", install, "venv --clear", "pip"]


def test_installed_and_still_missing_is_an_error(machine: Machine) -> None:
    """A package that does not bring its program is not installed again and again."""
    (machine.top / "bin" / "qemu-system-x86_64").unlink()
    machine.command("id", "#!/bin/sh\necho 0\n")
    result = machine.bootstrap("model", APT_BROKEN="yes")
    assert result.returncode == 3
    assert "qemu-system-x86" in result.stderr.splitlines()[-1]


def test_real_host_needs_no_local_vmm(machine: Machine) -> None:
    """When only real hosts are named, this machine needs no QEMU."""
    (machine.top / "bin" / "qemu-system-x86_64").unlink()
    assert machine.bootstrap("--sev-host", "lab1").returncode == 0
    assert machine.bootstrap("--sev-host", "lab1", "--sev-host=model").returncode == 3


def test_failed_pip_stops_and_is_repeated(machine: Machine) -> None:
    """A failed installation is an error of the set-up, and the next call starts afresh."""
    assert machine.bootstrap("tests", PIP_HOOK="exit 1").returncode == 3
    assert machine.bootstrap("tests").returncode == 0
    assert machine.calls == ["venv --clear", "pip", "venv --clear", "pip"]


def test_killed_set_up_is_repeated(machine: Machine) -> None:
    """A set-up that was killed half-way is never taken for a finished one."""
    result = machine.bootstrap("tests", PIP_HOOK="kill -KILL $PPID")
    assert result.returncode == -signal.SIGKILL
    assert machine.bootstrap("tests").returncode == 0
    assert machine.calls == ["venv --clear", "pip", "venv --clear", "pip"]


def test_directory_of_somebody_else_is_not_emptied(machine: Machine) -> None:
    """SEVES_VENV on a directory that is no environment is refused, and its files stay."""
    other = machine.top / "home"
    other.mkdir()
    (other / "letter").write_text("dear")
    result = machine.bootstrap("tests", SEVES_VENV=str(other))
    assert result.returncode == 3
    assert str(other) in result.stderr
    assert (other / "letter").read_text() == "dear"


def test_second_call_does_and_says_nothing(machine: Machine) -> None:
    """With everything in place it is pytest and nothing else."""
    machine.bootstrap("tests")
    before = machine.calls
    result = machine.bootstrap("tests")
    assert result.stderr == ""
    assert machine.calls == before


def test_changed_project_file_is_installed_again(machine: Machine) -> None:
    """pyproject.toml decides: its change repeats the installation, into the same environment."""
    machine.bootstrap("tests")
    with (machine.clone / "pyproject.toml").open("a") as file:
        file.write("# another dependency\n")
    machine.bootstrap("tests")
    assert machine.calls == ["venv --clear", "pip", "pip"]


def test_moved_clone_is_installed_again(machine: Machine) -> None:
    """An environment points at its clone; a clone that was moved is installed again."""
    machine.bootstrap("tests")
    moved = machine.top / "moved"
    machine.clone.rename(moved)
    machine.bootstrap("tests", script=moved / "bootstrap", cwd=moved)
    assert machine.calls == ["venv --clear", "pip", "pip"]


def test_two_at_once_set_up_once(machine: Machine) -> None:
    """The second of two calls waits for the first one's set-up and uses it."""
    fifo = machine.top / "go"
    os.mkfifo(fifo)
    argv = [str(machine.clone / "bootstrap"), "tests"]
    environment = machine.environment(PIP_HOOK=f"read line <{fifo}")
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(argv, cwd=machine.clone, env=environment, stdout=pipe) as first,
        subprocess.Popen(argv, cwd=machine.clone, env=environment, stdout=pipe) as second,
    ):
        fifo.write_text("go\n")  # returns once one of them reads, and only one ever does
        first.communicate(timeout=60)
        second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert machine.calls == ["venv --clear", "pip"]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["model"], "<--sev-host><model><-n><2><--dist><loadgroup>"),
        (["model", "-k", "VMSA"], "<--sev-host><model><-n><2><--dist><loadgroup><-k><VMSA>"),
        (["test"], "<-n><2><--dist><loadgroup><tests>"),
        (["test", "tests/host"], "<-n><2><--dist><loadgroup><tests/host>"),
        (["--sev-host", "lab1", "-k", "two words", ""], "<--sev-host><lab1><-k><two words><>"),
    ],
    ids=["model", "model-with-more", "test", "test-some", "verbatim"],
)
def test_arguments_reach_pytest(machine: Machine, given: list[str], passed: str) -> None:
    """The two commands stand for their options; everything else arrives as it was given."""
    assert machine.bootstrap(*given).stdout.startswith(passed + "/")


def test_runs_from_anywhere_through_a_link(machine: Machine) -> None:
    """Called by a symbolic link from another directory, it works in its own clone."""
    link = machine.top / "link"
    link.symlink_to(machine.clone / "bootstrap")
    result = machine.bootstrap("tests", script=link, cwd=machine.top)
    assert result.stdout == f"<tests>{machine.clone}\n"


def test_exit_status_is_pytest_s(machine: Machine) -> None:
    """Nothing comes between the caller and pytest's exit status."""
    assert machine.bootstrap("tests", PYTEST_STATUS="5").returncode == 5
