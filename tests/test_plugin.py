# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin, from outside: options, catalogue, outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest

Tmp = pytest.TempPathFactory

CATALOGUE = """
[[requirement]]
id = "X-1"
level = "must"
sentence = "The first."
source = "d"
[[requirement]]
id = "X-2"
level = "should"
sentence = "The second."
source = "d"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty suite with a catalogue of two requirements."""
    pytester.path.joinpath("requirements.toml").write_text(CATALOGUE)
    return pytester


def write(suite: pytest.Pytester, body: str, requirement: str = "X-1") -> None:
    """A test file with one test."""
    suite.makepyfile(
        f"""
        import pytest
        from pytest_seves.errors import EvidenceError, Undecided

        @pytest.mark.requirement("{requirement}")
        def test_it():
            {body}
        """
    )


def test_an_unknown_host_is_refused_before_anything_runs(suite: pytest.Pytester) -> None:
    """A host without a file is a usage error that names those there are."""
    write(suite, "pass")
    result = suite.runpytest("--sev-host", "lab9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*host 'lab9': there is no *lab9.toml*model*"])


def test_an_unknown_defect_is_refused_before_anything_runs(suite: pytest.Pytester) -> None:
    """A misspelt defect is a usage error that lists the defects."""
    result = suite.runpytest("--sev-host", "model", "--sev-defect", "nonsense")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no defect 'nonsense'; there are:*", "*vmsa-update-dropped: *"])


def test_a_kernel_defect_of_a_real_host_is_refused(suite: pytest.Pytester, project: Path) -> None:
    """A real kernel cannot be made wrong, and the usage error says so."""
    lab = f"--sev-lab={project / 'lab'}"
    result = suite.runpytest("--sev-host", "model", "--sev-host", "lab1", lab, "--sev-defect", "smm-offered")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*smm-offered: *one of the model's kernel, and lab1 is a real host*"])


def test_check_without_a_host_is_refused(suite: pytest.Pytester) -> None:
    """`--sev-check` says which option is missing."""
    result = suite.runpytest("--sev-check")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--sev-check: which host? Give --sev-host NAME*"])


@pytest.mark.parametrize("requirement", ["X-9", ""])
def test_an_unknown_requirement_is_refused(suite: pytest.Pytester, requirement: str) -> None:
    """A test that names no requirement of the catalogue is not run."""
    write(suite, "pass", requirement)
    result = suite.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*test_it: no requirement '{requirement}' in *requirements.toml*"])


def test_strict_wants_a_test_for_each_requirement(suite: pytest.Pytester) -> None:
    """Under --strict a requirement without a test, and a test without one, are refused."""
    write(suite, "pass")
    suite.makepyfile(test_other="def test_other(): pass")
    assert suite.runpytest().ret == pytest.ExitCode.OK
    result = suite.runpytest("--strict")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_other: names no requirement*", "*X-2: no test*"])


SLOW = """
import pytest
@pytest.mark.slow
@pytest.mark.requirement("X-1")
def test_kernel(): pass
@pytest.mark.requirement("X-2")
def test_quick(): pass
@pytest.mark.slow
def test_of_somebody_else(): pass
"""


@pytest.mark.parametrize(
    ("options", "passed", "deselected"),
    [
        ([], 2, 1),
        (["-n", "1"], 2, 0),  # workers do not tell
        (["--sev-slow"], 3, 0),
        (["-m", "slow"], 2, 1),
        (["-m", "not slow"], 1, 2),
        (["-k", "kernel"], 0, 3),
        (["-k", "kernel", "--sev-slow"], 1, 2),
    ],
)
def test_slow_tests_are_left_out(
    suite: pytest.Pytester, options: list[str], passed: int, deselected: int
) -> None:
    """A conformance test that is marked slow wants --sev-slow or -m; other people's marks are their own."""
    suite.makepyfile(SLOW)
    suite.runpytest(*options).assert_outcomes(passed=passed, deselected=deselected)


def test_slow_tests_count_for_the_catalogue(suite: pytest.Pytester) -> None:
    """A requirement whose test is slow has a test."""
    suite.makepyfile(SLOW.replace("@pytest.mark.slow\ndef", '@pytest.mark.requirement("X-2")\ndef'))
    assert suite.runpytest("--strict").ret == pytest.ExitCode.OK


def test_a_suite_without_a_host_is_skipped_with_the_reason(suite: pytest.Pytester) -> None:
    """A test that needs a host says which option gives it one."""
    suite.makepyfile("def test_it(launch_guest): pass")
    result = suite.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no host to judge: give --sev-host NAME*"])


def test_undecided_is_not_a_failure_and_not_green(suite: pytest.Pytester) -> None:
    """A launch that ended too early decides nothing: shown as undecided, and the run is not green."""
    write(suite, "raise Undecided('the launch ended before MEASURED')")
    result = suite.runpytest_subprocess("--sev-host", "model")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*.py U *",
            "X-1 *must *1 undecided *The first.",
            "*test_it: Undecided: the launch ended*",
            "*1 undecided*",
        ]
    )


def test_a_wrong_call_in_a_test_is_an_error(suite: pytest.Pytester) -> None:
    """An option of launch_guest that does not exist says nothing about the VMM."""
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.requirement("X-1")
        def test_it(launch_guest):
            launch_guest(vpcus=2)
        """
    )
    result = suite.runpytest_subprocess("--sev-host", "model")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UsageError: launch_guest: no such option vpcus; there are *"])


def test_a_broken_rig_is_an_error_and_not_a_failure(suite: pytest.Pytester) -> None:
    """An error of ours is shown as an error, in the terminal and in JUnit."""
    write(suite, "raise EvidenceError('timeline: no end line')")
    result = suite.runpytest_subprocess("--sev-host", "model", "--junitxml=j.xml")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["X-1 *must *1 error *The first."])
    junit = suite.path.joinpath("j.xml").read_text()
    assert 'errors="1" failures="0"' in junit


def test_a_failure_is_a_failure(suite: pytest.Pytester) -> None:
    """An assertion about the product that does not hold fails, and says so in the table."""
    write(suite, "assert [1] == [2]")
    result = suite.runpytest_subprocess("--sev-host", "model")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["X-1 *must *1 failed *The first.", "*test_it: *assert*"])


def test_a_summary_in_markdown_stands_beside_the_verdicts(suite: pytest.Pytester) -> None:
    """It says that the model is no qualification, and nothing in a message becomes markup."""
    write(suite, "raise Undecided('<script>|')")
    suite.runpytest_subprocess("--sev-host", "model", "--sev-artifacts=out")
    told = suite.path.joinpath("out/summary.md").read_text()
    assert "nothing here is a qualification of hardware" in told
    assert "| <code>X&#45;1</code><br>must: The first&#46;<wbr> | **undecided** | 1 undecided | " in told
    assert "script" in told
    assert "<script" not in told
    assert suite.path.joinpath("out/verdicts.json").exists()


@pytest.mark.parametrize("wanted", ["== 'EBUSY'", "in ('EBUSY', None)"])
def test_an_assertion_on_an_errno_shows_the_call(suite: pytest.Pytester, wanted: str) -> None:
    """The step, its number and the firmware's word stand beside the name, in the table as well."""
    write(
        suite,
        f"""
            from pytest_seves.guest.answers import Answers
            from pytest_seves.guest.calls import sev
            said = {{"result": -5, "errno": "EIO", "firmware": 3}}
            assert Answers([sev(4)], [said])[0].errno {wanted}
        """,
    )
    result = suite.runpytest_subprocess("--sev-host", "model")
    result.assert_outcomes(failed=1)
    call = "#0 KVM_SEV_LAUNCH_UPDATE_VMSA (vm) = -5 EIO, firmware status 0x03 INVALID_CONFIG"
    result.stdout.fnmatch_lines([f"E *as answered: <{call}>*", "*test_it: *as answered: <#0*"])


def test_default_parameters(suite: pytest.Pytester) -> None:
    """`vcpus` and `policy` have defaults with readable ids, and a test's own values win."""
    suite.makepyfile(
        """
        import pytest

        def test_default(launch_guest, vcpus, policy): pass

        @pytest.mark.parametrize("vcpus", [5])
        def test_own(launch_guest, vcpus): pass

        @pytest.fixture
        def policy(): return "ours"

        def test_of_another_project(policy): assert policy == "ours"
        """
    )
    result = suite.runpytest("--collect-only", "-q")
    result.stdout.fnmatch_lines(
        ["*test_default[[]1vcpu-ES]*", "*test_default[[]64vcpu-ES+NODBG+NOKS]*", "*test_own[[]5]"]
    )


def test_chosen_parameters(suite: pytest.Pytester) -> None:
    """`--sev-vcpus` and `--sev-policy`, or their ini values, replace the defaults."""
    suite.makepyfile("def test_it(launch_guest, vcpus, policy): pass")
    suite.makeini("[pytest]\nsev_vcpus = 7\n")
    result = suite.runpytest("--collect-only", "-q", "--sev-policy", "0x5, 6")
    result.stdout.fnmatch_lines(["*test_it[[]7vcpu-ES+NODBG]", "*test_it[[]7vcpu-ES+NOKS]", "2 tests*"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--sev-vcpus", "1,two", "--sev-vcpus: 'two' in '1,two': wanted a number"),
        ("--sev-vcpus", "0", "--sev-vcpus: 0 in '0': wanted 1 to"),
        ("--sev-policy", "0x100000000", "--sev-policy: 0x100000000 in"),
    ],
)
def test_a_list_that_is_none_is_refused(
    suite: pytest.Pytester, option: str, value: str, message: str
) -> None:
    """A wrong list is a usage error that shows the word."""
    suite.makepyfile("def test_it(launch_guest, vcpus): pass")
    result = suite.runpytest("--sev-host", "model", option, value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])


def test_a_directory_elsewhere_as_a_word_of_its_own(suite: pytest.Pytester, tmp_path_factory: Tmp) -> None:
    """`--sev-lab DIR` would move pytest's root directory: it is refused, and the right way is shown."""
    elsewhere = tmp_path_factory.mktemp("lab")
    result = suite.runpytest("--sev-host", "model", "--sev-lab", str(elsewhere))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*write --sev-lab={elsewhere}.*"])
    assert (
        suite.runpytest("--sev-host", "model", f"--sev-lab={elsewhere}").ret
        == pytest.ExitCode.NO_TESTS_COLLECTED
    )


def test_several_hosts_run_each_test(suite: pytest.Pytester) -> None:
    """With several hosts each test is collected once for each, named in its id."""
    lab = suite.path.joinpath("lab")
    lab.mkdir()
    for name in ("a", "b"):
        lab.joinpath(f"{name}.toml").write_text(
            '[host]\naddress = "192.0.2.1"\nuser = "sev"\n[firmware]\npath = "/f"\n'
        )
    suite.makepyfile("def test_it(sev_host): pass")
    result = suite.runpytest("--collect-only", "-q", "--sev-host", "a", "--sev-host", "b")
    result.stdout.fnmatch_lines(["*test_it[[]a]", "*test_it[[]b]"])
