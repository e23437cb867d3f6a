# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels with VM types answer, and where they differ from each other: no VMM in between, then QEMU."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure import vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmsa import VMSA

from pytest_seves.model.host import ModelHost
from pytest_seves.spec import vmsa
from tests.model.driving import Guest, Ssh, qemu_command, ssh_argv

PROFILES = ["linux-6.12", "linux-6.18", "linux-7.2"]
ALLOWED = {"GET_VCPU_EVENTS", "GET_MP_STATE"}


@pytest.fixture(scope="module", params=PROFILES)
def kernel(request: pytest.FixtureRequest, host: ModelHost) -> Iterator[ModelHost]:
    """A host of each profile (`host` skips where none can be had)."""
    with ModelHost.start(request.param) as running:
        yield running


def found_on(host: ModelHost) -> dict[str, Any]:
    """What init2_calls.py found there."""
    program = Path(__file__).with_name("init2_calls.py").read_text(encoding="utf-8")
    run = subprocess.run(
        ssh_argv(host, "python3 -I -S -"), input=program, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def results(kernel: ModelHost) -> dict[str, Any]:
    """What each request gave, run once on each kernel."""
    return found_on(kernel)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vm types", 0),
        ("types", [True, False, False, False, False, False]),
        ("attribute", [["ENXIO", 0]] * 3),
        ("init2 of a default vm", "EINVAL"),
        ("region2", "ENOTTY"),
        ("es_init again", "EBUSY"),
        ("read-only slot", 0),
        ("caps", [1, 7, 0]),
    ],
)
def test_linux_6_1_knows_nothing_of_it(oldest: dict[str, Any], name: str, wanted: object) -> None:
    """The oldest kernel refuses with the errno of an unknown request."""
    assert oldest[name] == wanted


@pytest.fixture(scope="module")
def oldest(host: ModelHost) -> dict[str, Any]:
    """The same requests on Linux 6.1."""
    return found_on(host)


def test_linux_6_1_shows_shadow_registers(oldest: dict[str, Any]) -> None:
    """Before 6.10 the MSRs of a protected vCPU read as they were written to the VMCB."""
    assert oldest["protected"]["EFER"] == [[1, 0], 1, [1, 0x500]]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vm types", 0b1101),
        ("types", [True, False, True, True, False, False]),
        ("attribute", [[0, 0], [0, 1 << 5], ["ENXIO", 0]]),
        ("init2 of a default vm", "EINVAL"),
        ("region2", 0),
        ("es_init", 0),
        ("es_init again", "EINVAL"),
        ("read-only slot", 0),
        ("caps", [1, 7, 0]),
        ("init2 flags", "EINVAL"),
        ("init2 unknown feature", "EINVAL"),
        ("init2 debug swap", 0),
        ("init2 ghcb", [0, 0, 0, "EINVAL"]),
        ("init2 sev", [0, "EINVAL", "EINVAL"]),
        ("es_init of a type 3 vm", "EINVAL"),
        ("type 3 start before init2", "ENOTTY"),
        ("type 3 caps before init2", [0, 0, 1]),
        ("type 3 run before init2", "EINVAL"),
        ("init2 with a vcpu", "EINVAL"),
        ("init2", 0),
        ("init2 again", "EINVAL"),
        ("type 3 caps", [0, 0, 0]),
        ("type 3 slots", ["EINVAL", 0]),
        ("type 3 sync regs", "EINVAL"),
        ("type 2 caps", [1, 7, 1]),
    ],
)
def test_kernels_agree(results: dict[str, Any], name: str, wanted: object) -> None:
    """6.12, 6.18 and 7.2 answer alike."""
    assert results[name] == wanted


def test_registers_are_refused_once_protected(results: dict[str, Any]) -> None:
    """A type 3 vCPU gives its registers before LAUNCH_UPDATE_VMSA and refuses them after it."""
    assert set(results["type 3 registers before init2"].values()) == {0}
    after = results["type 3 protected"]["registers"]
    assert {name for name, result in after.items() if result == 0} == ALLOWED
    assert {result for name, result in after.items() if name not in ALLOWED} == {"EINVAL"}


def test_default_type_keeps_its_answers(results: dict[str, Any]) -> None:
    """A legacy ES guest's registers stay open on every kernel, KVM_SET_GUEST_DEBUG apart."""
    answers = results["protected"]["registers"]
    assert {name for name, result in answers.items() if result != 0} == {"SET_GUEST_DEBUG"}


@pytest.mark.parametrize("name", ["EFER", "PAT"])
def test_msrs_are_hidden(results: dict[str, Any], name: str) -> None:
    """Legacy: read as 0, writes lost; type 3: not one entry processed, the buffer left alone."""
    assert results["protected"][name] == [[1, 0], 1, [1, 0]]
    assert results["type 3 protected"][name] == [[0, 0x5A], 0, [0, 0x5A]]


def test_intercepted_msrs_are_not_hidden(results: dict[str, Any]) -> None:
    """A register that the guest cannot reach by itself stays KVM's."""
    assert results["type 3 protected"]["TSC_DEADLINE"] == [1, [1, 3]]


def test_kernels_differ(kernel: ModelHost, results: dict[str, Any]) -> None:
    """KVM_SMI, a second LAUNCH_UPDATE_VMSA and IA32_XSS: each changed at a release of its own."""
    answers = results["protected"]
    seen = answers["smi"], answers["vmsa again"], answers["XSS"][2]
    assert (
        seen
        == {
            "linux-6.12": (0, "EINVAL", [1, 0]),
            "linux-6.18": ("ENOTTY", 0, [1, 0x800]),
            "linux-7.2": ("ENOTTY", "EINVAL", [1, 0x800]),
        }[kernel.profile]
    )


@pytest.mark.parametrize("features", [0, 1 << 5], ids=["plain", "debug-swap"])
def test_init2_save_area_is_sev_snp_measures(
    kernel: ModelHost, results: dict[str, Any], features: int
) -> None:
    """The calculator's page as it is, FPU fields and features included."""
    handle = results["measured"][bool(features)]
    entries = [json.loads(line) for line in kernel.firmware_log.read_text().splitlines()]
    (seen,) = [e["sha256"] for e in entries if is_vmsa_of(handle, e)]
    (page,) = VMSA(SevMode.SEV_ES, 0, vcpu_types.CPU_SIGS["EPYC-v3"], features).pages(1)
    assert seen == hashlib.sha256(page).hexdigest()


def is_vmsa_of(handle: int, entry: dict[str, Any]) -> bool:
    """Whether an entry of the firmware's log is a measured save area of that guest."""
    return (entry["command"], entry.get("handle")) == ("LAUNCH_UPDATE_VMSA", handle)


def test_unmodified_qemu_starts_on_the_legacy_path(kernel: ModelHost, launch: Callable[..., Guest]) -> None:
    """A VMM older than the kernel: the default VM type, and FPU fields left zero."""
    guest = launch(on=kernel, vcpus=2)
    guest("stop")
    guest("cont")
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0
    entries = [json.loads(line) for line in kernel.firmware_log.read_text().splitlines()]
    pages = [e["sha256"] for e in entries if e["command"] == "LAUNCH_UPDATE_VMSA"][-2:]
    legacy = bytearray(next(VMSA(SevMode.SEV_ES, 0, vcpu_types.CPU_SIGS["EPYC-v3"], 0).pages(1)))
    for name in ("mxcsr", "x87_fcw"):
        field = vmsa.VMSA.field(name)
        legacy[field.offset : field.offset + field.size] = bytes(field.size)
    assert pages[0] == hashlib.sha256(legacy).hexdigest()


@pytest.mark.parametrize("policy", [None, 1])
def test_other_guests_start(kernel: ModelHost, launch: Callable[..., Guest], policy: int | None) -> None:
    """A plain guest and one with SEV alone."""
    guest = launch(on=kernel, policy=policy)
    assert guest("query-status")["status"] == "running"
    assert guest.quit() == 0


@pytest.mark.parametrize(("profile", "result"), [("linux-6.1", -16), ("linux-6.12", -25)])
def test_empty_range_of_asids(host: ModelHost, ssh: Ssh, profile: str, result: int) -> None:
    """EBUSY as if all were taken, until kernels told the two apart."""
    with ModelHost.start(f"{profile}:sev_asids=0") as empty:
        assert f"ret={result} fw_error=0" in ssh(qemu_command(policy=1), on=empty).stderr
