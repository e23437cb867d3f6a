# SPDX-License-Identifier: GPL-2.0-or-later
"""Decoding of raw facts: what a host did not say is unknown, never wrong and never an exception."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_seves.host.facts import decode_facts

MILAN: dict[str, Any] = json.loads((Path(__file__).parent / "milan.json").read_text())


def changed(**items: Any) -> dict[str, Any]:
    """Raw facts of a Milan host, with other values for some items; None takes one away."""
    raw = copy.deepcopy(MILAN)
    raw.update(items)
    return {key: value for key, value in raw.items() if value is not None}


def with_leaf(leaf: str, *registers: int) -> dict[str, Any]:
    """Raw facts with another CPUID leaf."""
    raw = copy.deepcopy(MILAN)
    raw["cpuid"]["leaves"][leaf] = list(registers)
    return raw


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["00" * 12, "ok", "Y", "AAAA"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)  # shared machines stall
@given(items=st.dictionaries(st.sampled_from(sorted(MILAN)), _JSON, max_size=6))
def test_no_answer_of_a_host_raises(items: dict[str, Any]) -> None:
    """Items of any other type and value are decoded to something, mostly to None."""
    assert decode_facts({**MILAN, **items}, now_ns=0) is not None


@settings(deadline=None)  # shared machines stall
@given(
    name=st.sampled_from(["cpuid", "params", "devices", "misc", "vmm", "firmware", "uname"]), data=st.data()
)
def test_no_part_of_an_answer_raises(name: str, data: st.DataObject) -> None:
    """The same one level deeper."""
    keys = st.sampled_from(sorted(MILAN[name]))
    items = data.draw(st.dictionaries(keys, _JSON, max_size=3))
    assert decode_facts({**MILAN, name: {**MILAN[name], **items}}) is not None


def test_an_empty_answer_is_all_unknown() -> None:
    """Nothing is assumed of a host that says nothing."""
    facts = decode_facts({})
    assert (facts.sev, facts.sev_es, facts.cbitpos, facts.es_asids, facts.free_es_asids) == (None,) * 5
    assert (facts.platform, facts.platform_error, facts.snp_platform) == (None, "not told", None)
    assert facts.devices["/dev/sev"].open == "unknown"
    assert (facts.memlock_known, facts.firmware.table, facts.vmm.version) == (False, None, ())


def test_a_milan_host() -> None:
    """Every decoded value of a healthy host."""
    facts = decode_facts(MILAN, now_ns=MILAN["time_ns"] - 1_500_000_000)
    assert (facts.cpu, facts.vendor) == ("AMD EPYC 7313P 16-Core Processor", "AuthenticAMD")
    assert (facts.signature, facts.family) == (0x00A00F11, 0x19)
    assert (facts.sev, facts.sev_es, facts.snp) == (True, True, True)
    assert (facts.cbitpos, facts.reduced_phys_bits) == (51, 5)
    assert (facts.max_asid, facts.min_sev_asid, facts.es_asids, facts.free_es_asids) == (509, 100, 99, 97)
    assert facts.platform is not None
    assert (facts.platform.api_major, facts.platform.api_minor, facts.platform.build) == (1, 55, 21)
    assert (facts.platform.state_name, facts.platform.owned, facts.platform.es) == ("INIT", False, True)
    assert facts.snp_svn == 0x18
    assert facts.vmm.version == (7, 2, 22)
    assert facts.firmware.table is not None
    assert facts.firmware.table.reset_address == 0x80B004
    assert (facts.memlock, facts.memlock_known, facts.ipc_lock) == (None, True, False)
    assert (facts.python, facts.kernel, facts.clock_skew_s) == ((3, 11, 2), "6.1.0-41-amd64", 1.5)


@pytest.mark.parametrize(
    ("in_use", "of_others", "free"),
    [(2, None, 97), (99, 0, 99), (99, 99, 0), (3, 50, 96), (99, "many", 0), (None, 0, None)],
    ids=["no-lease", "ours", "others", "some-have-gone", "nonsense", "not-counted"],
)
def test_asids_that_others_hold(in_use: int | None, of_others: object, free: int | None) -> None:
    """Those of before the run count, and never more than are in use now."""
    misc = {**MILAN["misc"], "current": {"sev_es": in_use}}
    assert decode_facts({**MILAN, "misc": misc, "es_asids_of_others": of_others}).free_es_asids == free


def test_reduced_phys_bits_is_never_zero() -> None:
    """QEMU refuses 0 ("it should be >=1"), also on a CPU whose leaf says 0."""
    assert decode_facts(with_leaf("0x8000001f", 0x1F, 47, 15, 5)).reduced_phys_bits == 1


def test_a_cpu_without_the_leaf_has_no_sev() -> None:
    """A leaf above the greatest one answers with other values: no SEV, rather than nonsense."""
    facts = decode_facts(with_leaf("0x80000000", 0x80000008, 0, 0, 0))
    assert (facts.sev, facts.sev_es, facts.es_asids) == (False, False, 0)


def test_a_cpu_that_could_not_be_asked_is_unknown() -> None:
    """No CPUID is not "no SEV"."""
    assert decode_facts(changed(cpuid={"source": None, "leaves": {}, "error": "x"})).sev_es is None


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ({"errno": "EACCES", "fw_error": None}, "EACCES"),
        ({"errno": "EIO", "fw_error": 1}, "EIO, firmware status 0x01 INVALID_PLATFORM_STATE"),
        ({"errno": "EIO", "fw_error": 0xFFFFFFFF}, "EIO, firmware status firmware not called"),
        ({"hex": "00"}, "malformed: sev_user_data_status: wanted 12 bytes, got 1"),
        ({"hex": "zz"}, "malformed: non-hexadecimal number"),
    ],
)
def test_a_status_that_failed_says_why(status: dict[str, Any], error: str) -> None:
    """errno, and the firmware's own word for it."""
    facts = decode_facts(changed(platform_status=status))
    assert facts.platform is None
    assert (facts.platform_error or "").startswith(error)


def snp_status(svn_at: int, svn: int, state: int = 1) -> dict[str, str]:
    """SNP_PLATFORM_STATUS with the SNP SVN in a given byte of the current TCB."""
    raw = bytearray(32)
    raw[0:3] = 1, 55, state
    raw[16 + svn_at] = svn
    return {"hex": raw.hex()}


@pytest.mark.parametrize(
    ("signature", "svn_at", "svn", "state", "removed"),
    [
        (0x00A00F11, 6, 0x1A, 1, False),
        (0x00A00F11, 6, 0x1B, 1, True),
        (0x00A00F11, 6, 0x1B, 0, False),
        (0x00A00F11, 3, 0x1B, 1, False),
        (0x00A10F11, 6, 0x1B, 1, True),
        (0x00B00F21, 3, 0x03, 1, False),
        (0x00B00F21, 3, 0x04, 1, True),
        (0x00B00F21, 6, 0x1B, 1, False),
        (0x00830F10, 6, 0x1B, 1, False),
    ],
    ids=[
        *("milan-older", "milan", "milan-snp-off", "milan-other-byte", "genoa"),
        *("turin-older", "turin", "turin-other-byte", "rome"),
    ],
)
def test_firmware_that_removed_sev_es(
    signature: int, svn_at: int, svn: int, state: int, removed: bool
) -> None:
    """AMD-SB-3023: from SVN 0x1b (Zen 3 and 4) or 0x04 (Zen 5, another byte) on, while SNP is initialised."""
    raw = with_leaf("0x1", signature, 0, 0, 0)
    raw["snp_platform_status"] = snp_status(svn_at, svn, state)
    assert decode_facts(raw).es_removed_by_firmware is removed


def test_a_kernel_that_counts_only_sev_has_no_es_asids() -> None:
    """misc.capacity without sev_es is zero, not unknown."""
    assert decode_facts(changed(misc={"capacity": {"sev": 509}, "current": {}})).es_capacity == 0
    assert decode_facts(changed(misc={"capacity": None, "current": None})).es_capacity is None


@pytest.mark.parametrize(
    ("firmware", "error"),
    [
        (
            {"path": "/x.fd", "errno": "ENOENT", "error": "No such file or directory"},
            "No such file or directory",
        ),
        (
            {"path": "/x.fd", "size": 4, "tail_b64": "AAAAAA=="},
            "/x.fd: GUIDed table at 0x0 of 0x4: wanted an image",
        ),
        ({"path": "/x.fd", "size": 4096, "tail_b64": "%"}, "Only base64 data is allowed"),
        ({"path": "/x.fd", "size": 4096, "tail_b64": "é"}, "string argument should contain only ASCII"),
        ({}, "not told"),
    ],
)
def test_a_firmware_that_could_not_be_parsed_says_why(firmware: dict[str, Any], error: str) -> None:
    """Missing, truncated or garbled in transit."""
    facts = decode_facts(changed(firmware=firmware))
    assert facts.firmware.table is None
    assert (facts.firmware.error or "").startswith(error)
