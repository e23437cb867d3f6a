# SPDX-License-Identifier: GPL-2.0-or-later
"""A known defect: expected where its version has it, noted where it did not happen, a failure elsewhere."""

from __future__ import annotations

import json

import pytest

CATALOGUE = """
[[requirement]]
id = "X-1"
level = "must"
sentence = "It stands."
source = "d"
"""
DEFECT = """
[[defect]]
requirement = "X-1"
vmm = "qemu"
since = "6.0"
before = "{before}"
what = "it falls"
reference = "commit 1"
"""
TEST = """
import pytest

@pytest.mark.requirement("X-1")
def test_it(launch_guest):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "before", "outcome", "status", "note"),
    [
        ("assert False", "1000.0", "known defect", 0, "known defect: it falls (commit 1)"),
        ("pass", "1000.0", "unexpected pass", 0, "passed all the same: known defect: it falls (commit 1)"),
        ("assert False", "6.1", "failed", 1, "test_it: assert False"),
        ("pass", "6.1", "passed", 0, ""),
        ("raise ValueError('of the test')", "1000.0", "failed", 1, "test_it: ValueError: of the test"),
    ],
)
def test_a_known_defect(
    pytester: pytest.Pytester, body: str, before: str, outcome: str, status: int, note: str
) -> None:
    """The exit status, the verdict, and what stands below it; also under a strict xfail of the ini file."""
    pytester.path.joinpath("requirements.toml").write_text(CATALOGUE)
    pytester.path.joinpath("known_defects.toml").write_text(DEFECT.format(before=before))
    pytester.makepyfile(TEST.format(body=body))
    pytester.makeini("[pytest]\nstrict_xfail = true\naddopts = -p no:labgrid")
    run = pytester.runpytest_subprocess("--sev-host=model", "--sev-artifacts=out")
    assert run.ret == status
    verdicts = json.loads((pytester.path / "out/verdicts.json").read_text())
    assert verdicts["model"]["requirements"]["X-1"]["verdict"] == outcome
    run.stdout.fnmatch_lines([f"X-1 *1 {outcome} *It stands.*", *([f" *{note}"] if note else [])])
