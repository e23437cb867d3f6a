# SPDX-License-Identifier: GPL-2.0-or-later
"""Each class of host fault, made for real on a model host, is recognised and never a failed verdict."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_seves.blocked import EXIT_BLOCKED
from pytest_seves.model.host import ModelHost
from tests.faults.conftest import PROJECT, Rig
from tests.faults.proxy import Proxy

StartModel = Callable[..., ModelHost]
StartProxy = Callable[[ModelHost], Proxy]

#: A suite in which something goes wrong, and how its test goes on.
ONE = f"""
import os, sys, threading
from pathlib import Path
from pytest_seves.host.client import open_client
from pytest_seves.guest.calls import open_kvm
from tests.faults.proxy import tell

DIRECTORY = Path(os.environ["LAB1_DIR"])

def say(line):
    with DIRECTORY.joinpath("kmsg").open("a") as log:
        log.write(f"1,7,5,-;{{line}}\\n SUBSYSTEM=cpu\\n")

def on_host(sev_host, program):
    program = "import sys; sys.path.insert(0, {str(PROJECT)!r});" + program
    client = open_client(sev_host.entry)  # somebody else, who asks nobody
    return client.call("exec", {{"argv": [sys.executable, "-c", program], "timeout_s": 60}})

def take_asids(sev_host, tmp_path):
    taken = tmp_path / "taken"
    os.mkfifo(taken)
    program = (
        "import time; from pytest_seves.agent.asid_holder import _fill; held = _fill(99);"
        f"open({{str(taken)!r}}, 'w').close(); time.sleep(60)"
    )
    threading.Thread(target=on_host, args=(sev_host, program), daemon=True).start()
    taken.read_bytes()

def reset_firmware(sev_host):
    program = "import os; from pytest_seves.agent import facts; facts.issue(os.open('/dev/sev', 2), 0, 0)"
    assert on_host(sev_host, program)["status"] == 0

def fill():
    with DIRECTORY.joinpath("ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass

def reboot():
    DIRECTORY.joinpath("boot_id").write_text("00000000-0000-0000-0000-000000000001")
    tell(int(os.environ["LAB1_PROXY"]), "reset")

def test_one(kvm, launch_guest, sev_host, tmp_path):
    assert kvm(open_kvm())[0].errno is None
    WRONG
"""
#: Another suite, which is to be refused.
TWO = "from pytest_seves.guest.calls import open_kvm\ndef test_two(kvm):\n    assert kvm(open_kvm())\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB for a host's directory."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces for this user")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def oops(then: str) -> str:
    """The kernel reports a bug of its own; then something else."""
    return f'say("BUG: kernel NULL pointer dereference, address: 0000000000000008"); {then}'


def run(rig: Rig, wrong: str) -> tuple[dict[str, int], int, str]:
    """Two suites, with something wrong in the first one: outcomes, exit status, output."""
    rig.write("one/test_one.py", ONE.replace("WRONG", wrong))
    rig.write("two/test_two.py", TWO)
    result = rig.run("--sev-host", "lab1", "one", "two", "--sev-artifacts", "out")
    return dict(result.outcomes()), result.status, result.text


def test_a_kernel_oops(rig: Rig, start_model: StartModel) -> None:
    """What the kernel logs during a suite that passed blocks the next one, and the log is kept."""
    rig.host("lab1", start_model())
    outcomes, status, text = run(rig, oops("pass"))
    assert (outcomes, status) == ({"passed": 1, "error": 1}, EXIT_BLOCKED), text
    assert "lab1: blocked by kernel oops after 1 of 2 tests" in text
    assert (
        "its log says: 'BUG: kernel NULL pointer dereference, address: 0000000000000008', before two" in text
    )
    rows = [json.loads(row) for row in (rig.path / "out/lab1/health.jsonl").read_text().splitlines()]
    assert [row["when"] for row in rows] == ["before one", "before two"]
    assert [len(row["seen"]["log"]["lines"]) for row in rows] == [0, 1]


def test_an_oops_in_a_test_that_failed(rig: Rig, start_model: StartModel) -> None:
    """KVM may have oopsed because of the guest: that verdict stays, and failed wins over blocked."""
    rig.host("lab1", start_model())
    outcomes, status, text = run(rig, oops("assert False"))
    assert (outcomes, status) == ({"failed": 1, "error": 1}, pytest.ExitCode.TESTS_FAILED), text
    assert "lab1: blocked by kernel oops after 1 of 2 tests" in text


def test_a_trap_of_a_program(rig: Rig, start_model: StartModel) -> None:
    """A VMM that crashes is the product's; the kernel's note of that blocks nothing."""
    rig.host("lab1", start_model())
    line = "traps: qemu-system-x86[77] general protection fault ip:5581 sp:7ffd error:0 in qemu[5581+1]"
    outcomes, status, text = run(rig, f"say({line!r})")
    assert (outcomes, status) == ({"passed": 2}, 0), text


def test_a_reboot(rig: Rig, start_model: StartModel, start_proxy: StartProxy) -> None:
    """A host that is reached again with another boot id was rebooted."""
    model = start_model()
    rig.host("lab1", model, start_proxy(model))
    outcomes, status, text = run(rig, "reboot(); kvm(open_kvm())")
    assert (outcomes, status) == ({"error": 2}, EXIT_BLOCKED), text
    assert "lab1: blocked by rebooted after 1 of 2 tests" in text


def test_a_firmware_that_was_reset(rig: Rig, start_model: StartModel) -> None:
    """FACTORY_RESET by somebody else: UNINIT, which it was not at the start."""
    rig.host("lab1", start_model())
    outcomes, status, text = run(rig, "reset_firmware(sev_host)")
    assert (outcomes, status) == ({"passed": 1, "error": 1}, EXIT_BLOCKED), text
    assert "SEV firmware lost its state: platform state UNINIT, was INIT, before two" in text


def test_no_free_asids(rig: Rig, start_model: StartModel) -> None:
    """A launch that finds no ASID, since others hold all of them, is no verdict about the VMM."""
    rig.host("lab1", start_model("linux-6.1:es_asids=1"))
    outcomes, status, text = run(rig, "take_asids(sev_host, tmp_path); assert launch_guest().timeline.runs")
    assert (outcomes, status) == ({"error": 2}, EXIT_BLOCKED), text
    assert "no free SEV-ES ASIDs: 1 of 1 are in use by others, in one/test_one.py::test_one" in text


def test_a_full_disk(rig: Rig, start_model: StartModel, small_disk: Path) -> None:
    """A file that cannot be put there, for want of space, is the host's fault."""
    rig.host("lab1", start_model(directory=small_disk))
    outcomes, status, text = run(rig, 'fill(); launch_guest.put("x", bytes(1 << 16))')
    assert (outcomes, status) == ({"error": 2}, EXIT_BLOCKED), text
    assert f"disk full: {small_disk}: 0 bytes and " in text


def test_a_test_that_failed_by_itself(rig: Rig, start_model: StartModel) -> None:
    """A failed verdict on a host that is well stays one, and blocks nothing."""
    rig.host("lab1", start_model())
    outcomes, status, text = run(rig, "assert False")
    assert (outcomes, status) == ({"failed": 1, "passed": 1}, pytest.ExitCode.TESTS_FAILED), text


def test_a_host_that_was_never_there(rig: Rig, start_model: StartModel, start_proxy: StartProxy) -> None:
    """The first test says what was tried, the others that it is blocked."""
    model = start_model()
    proxy = start_proxy(model)
    rig.host("lab1", model, proxy)
    proxy.stop_listening()
    outcomes, status, text = run(rig, "pass")
    assert (outcomes, status) == ({"error": 2}, EXIT_BLOCKED), text
    assert "pytest_seves.errors.HostUnreachable: lab1: " in text
    assert "blocked: lab1: unreachable: " in text
    assert ", in one/test_one.py::test_one" in text
