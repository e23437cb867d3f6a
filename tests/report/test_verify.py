# SPDX-License-Identifier: GPL-2.0-or-later
"""``pytest-seves verify``: every kind of change is found and named, and what nobody vouches for is said."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_seves.cli import main
from pytest_seves.evidence.bundle import Bundle
from pytest_seves.report import html, qualify
from pytest_seves.report.signature import private_key, public_key
from pytest_seves.report.verify import verify
from tests.report import bundles
from tests.report.conftest import Keys, no_passphrase, write_keys

Change = Callable[[Path], object]


def test_a_report_as_it_was_made(signed: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    """All holds: exit 0, and what is left to judge is told."""
    assert main(["verify", str(signed), "--key", str(keys.public)]) == 0
    told = capsys.readouterr().out
    assert "holds: signed by key" in told
    assert "holds: report.html shows what report.json says, byte for byte" in told
    assert "holds: its verdicts and levels follow from the bundle's results" in told
    assert "for you to judge: whose key" in told
    assert "for you to judge: that the evidence was recorded on the hardware named for lab1" in told
    assert told.endswith("\nVERIFIED\n")


def test_without_a_key_nothing_is_vouched_for(signed: Path) -> None:
    """A signature that was not checked is said so: exit 2."""
    found = verify(signed, None)
    assert (found.status, found.wrong) == (2, [])
    assert "unchecked: give the public key" in found.open[0]


def test_an_unsigned_report_is_nobodys(tmp_path: Path) -> None:
    """It is whole, and anybody could have made it: exit 2."""
    root = bundles.write(tmp_path / "r" / "evidence")
    qualify.write(Bundle.open(root), tmp_path / "r", None)
    found = verify(tmp_path / "r", None)
    assert (found.status, found.wrong) == (2, [])
    assert found.open == ["unsigned: nobody vouches for it, and anybody could have made all of it"]


def flip(name: str, needle: bytes = b"") -> Change:
    """Change one byte of a file: after `needle`, or in its middle."""

    def change(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        place = content.index(needle) + len(needle) if needle else len(content) // 2
        content[place] ^= 1
        (root / name).write_bytes(content)

    return change


def append(name: str) -> Change:
    """Add a byte to a file."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + b" ")


def add(name: str) -> Change:
    """Put a file there."""
    return lambda root: (root / name).write_text("{}")


def pipe(name: str) -> Change:
    """Put a pipe in the place of a file: nobody writes to it."""

    def change(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return change


def remove(name: str) -> Change:
    """Take one away."""
    return lambda root: (root / name).unlink()


def link(name: str, to: str) -> Change:
    """Put a link in the place of a file or a directory, which stays reachable by it."""

    def change(root: Path) -> None:
        away = root.parent / "away"
        (root / name).rename(away)
        (root / name).symlink_to(to or away)

    return change


def add_link(name: str, to: str) -> Change:
    """Put a link beside what is there."""
    return lambda root: (root / name).symlink_to(to)


LAUNCH = "evidence/lab1/launches/001-2vcpu-ES+NODBG"
CHANGES: dict[str, tuple[Change, str]] = {
    "verdict in report.json": (flip("report.json", b'"verdict": "passe'), "report.json"),
    "space in report.json": (flip("report.json", b"{\n"), "report.json"),
    "time in report.json": (flip("report.json", b'"made": "202'), "report.html was changed|another report"),
    "byte in report.html": (flip("report.html"), "report.html was changed"),
    "end of report.html": (append("report.html"), "report.html was changed"),
    "timeline": (flip(f"{LAUNCH}/timeline.jsonl"), "timeline.jsonl: it was changed"),
    "manifest": (flip(f"{LAUNCH}/launch.json"), "launch.json: it was changed"),
    "result": (flip("evidence/results.jsonl", b'"outcome": "passe'), "results.jsonl"),
    "catalogue": (flip("evidence/requirements.toml"), "requirements.toml: it was changed"),
    "levels": (flip("evidence/levels.toml"), "levels.toml: it was changed"),
    "seal": (flip("evidence/bundle.json", b'"sealed": {'), "bundle.json"),
    "bundle.json": (flip("evidence/bundle.json", b'"run": "'), "bundle.json: it is not the one"),
    "envelope": (flip("report.dsse.json"), "report.dsse.json"),
    "no envelope": (remove("report.dsse.json"), "the signature was removed, or never made"),
    "no report.json": (remove("report.json"), "report.json"),
    "no report.html": (remove("report.html"), "report.html"),
    "no timeline": (remove(f"{LAUNCH}/timeline.jsonl"), "timeline.jsonl"),
    "no manifest": (remove(f"{LAUNCH}/launch.json"), "launch.json"),
    "no bundle": (lambda r: shutil.rmtree(r / "evidence"), "evidence"),
    "further file": (add("report-v2.html"), "report-v2.html is none of the report's files"),
    "further evidence": (
        add("evidence/lab1/launches/002.json"),
        "not sealed, and there: lab1/launches/002.json",
    ),
    "further launch": (add(f"{LAUNCH}/more.txt"), "not sealed, and there"),
    "report.json is a link": (link("report.json", ""), "report.json"),
    "bundle is a link": (link("evidence", ""), "evidence.* link"),
    "timeline is a link": (link(f"{LAUNCH}/timeline.jsonl", ""), "timeline.jsonl"),
    "launch is a link": (link(LAUNCH, ""), "link|not sealed"),
    "link beside": (add_link("more", "/etc"), "more is a link"),
    "link in the bundle": (add_link("evidence/more", "/etc"), "not sealed, and there: more"),
    "pipe for a report": (pipe("report.json"), "report.json"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_found(signed: Path, keys: Keys, what: str) -> None:
    """With the signer's key, each is found and named: exit 1."""
    change, said = CHANGES[what]
    change(signed)
    found = verify(signed, public_key(keys.public))
    assert found.status == 1
    assert re.search(said, "\n".join(found.wrong))


@pytest.mark.parametrize("what", [what for what in CHANGES if "envelope" not in what])
def test_most_changes_are_found_without_any_signature(tmp_path: Path, what: str) -> None:
    """A report vouches for its bundle, and its page for the report, signed or not."""
    root = bundles.write(tmp_path / "r" / "evidence")
    qualify.write(Bundle.open(root), tmp_path / "r", None)
    CHANGES[what][0](tmp_path / "r")
    found = verify(tmp_path / "r", None)
    harmless = {"space in report.json", "time in report.json"}  # they say nothing of the bundle
    assert found.status == (1 if what not in harmless else found.status)


def test_another_key_is_told(signed: Path, tmp_path: Path) -> None:
    """A key that did not sign is no reason to believe: exit 1."""
    other = public_key(write_keys(tmp_path).public)
    found = verify(signed, other)
    assert found.status == 1
    assert f"does not hold for key {other.keyid[:16]}" in found.wrong[0]


def test_a_forger_with_a_key_of_his_own_is_told(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """The whole report made anew and signed by another key: consistent, and not by the key that was given."""
    forged = private_key(write_keys(tmp_path).private, no_passphrase)
    qualify.write(Bundle.open(signed / "evidence"), signed, forged)
    assert verify(signed, None).wrong == []
    assert verify(signed, public_key(keys.public)).status == 1


def test_a_downgrade_to_an_unsigned_report_is_told(signed: Path, keys: Keys) -> None:
    """Made anew without any signature: who gives a key wants one."""
    qualify.write(Bundle.open(signed / "evidence"), signed, None)
    assert not (signed / "report.dsse.json").exists()
    found = verify(signed, public_key(keys.public))
    assert (found.status, len(found.wrong)) == (1, 1)
    assert "there is no report.dsse.json, and a key was given" in found.wrong[0]


def test_a_page_and_a_report_that_were_changed_alike_are_told(signed: Path) -> None:
    """A level forged in report.json, and the page made of it: it does not follow from the bundle."""
    report = json.loads((signed / "report.json").read_text())
    report["hosts"]["lab1"]["levels"][0]["sentence"] = "It flies."
    report["signing"] = None
    (signed / "report.dsse.json").unlink()
    (signed / "report.json").write_bytes(qualify.to_bytes(report))
    (signed / "report.html").write_bytes(html.render(report))
    assert verify(signed, None).wrong == ["report.json is not what the bundle makes: hosts differ"]


def test_half_a_character_in_a_name_is_no_traceback(signed: Path) -> None:
    """JSON can hold what no file system can: the page has it as an escape."""
    report = json.loads((signed / "report.json").read_text())
    report["evidence"][0]["path"] = "lab1/\ud800"
    (signed / "report.json").write_bytes(qualify.to_bytes(report))
    assert verify(signed, None).status == 1


def test_an_envelope_of_another_report_is_told(signed: Path, keys: Keys) -> None:
    """The same key, another run."""
    envelope = (signed / "report.dsse.json").read_bytes()
    shutil.rmtree(signed / "evidence")
    root = bundles.write(signed / "evidence", run=bundles.about(run="20261125-9"))
    qualify.write(Bundle.open(root), signed, private_key(keys.private, no_passphrase))
    (signed / "report.dsse.json").write_bytes(envelope)
    found = verify(signed, public_key(keys.public))
    assert found.status == 1
    assert "speaks of another report: report.json, report.html, bundle.json" in found.wrong[0]


@pytest.mark.parametrize(
    ("path", "said"),
    [("../away", "bundle.path"), ("/etc", "bundle.path"), ("a//b", "bundle.path"), (".", "bundle.path")],
)
def test_a_report_leads_nowhere_else(signed: Path, path: str, said: str) -> None:
    """A bundle's place that is not below the report is refused before anything is read there."""
    report = json.loads((signed / "report.json").read_text())
    report["bundle"]["path"] = path
    (signed / "report.json").write_bytes(qualify.to_bytes(report))
    found = verify(signed, None)
    assert (found.status, found.holds) == (1, [])
    assert said in found.wrong[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"{}",
        b'{"format": "pytest-seves-report", "version": 2}',
        b"[" * 200_000,
    ],
)
def test_what_is_no_report_is_refused(signed: Path, content: bytes) -> None:
    """Named, whatever it is; nothing of it is read further."""
    (signed / "report.json").write_bytes(content)
    found = verify(signed, None)
    assert found.status == 1
    assert "report.json" in found.wrong[0]


@pytest.mark.parametrize(
    ("keys_to", "value"),
    [
        (("results", 0, "host"), "nobody"),
        (("results", 0, "evidence"), [99]),
        (("results", 0, "outcome"), "splendid"),
        (("hosts", "lab1", "requirements", 0, "cells"), []),
        (("launch", "calls", 0, "at_us"), "now"),
        (("launch", "calls", 0, "at_us"), 10**400),
        (("bundle", "sha256"), "x"),
        (("more",), 1),
    ],
)
def test_a_report_that_does_not_fit_is_refused(
    signed: Path, keys_to: tuple[object, ...], value: object
) -> None:
    """Before a page is made of it, whatever a stranger put there."""
    report = json.loads((signed / "report.json").read_text())
    inner = report
    for key in keys_to[:-1]:
        inner = inner[key]
    inner[keys_to[-1]] = value
    (signed / "report.json").write_bytes(qualify.to_bytes(report))
    assert verify(signed, None).status == 1


def test_nothing_lies_on_the_way_to_the_bundle(tmp_path: Path) -> None:
    """A directory between the report and its bundle holds the bundle alone."""
    root = bundles.write(tmp_path / "r" / "more" / "evidence")
    qualify.write(Bundle.open(root), tmp_path / "r", None)
    assert verify(tmp_path / "r", None).wrong == []
    (tmp_path / "r" / "more" / "report.html").write_text("forged")
    assert "more/report.html is none of the report's files" in verify(tmp_path / "r", None).wrong[0]


def test_a_bundle_that_lies_elsewhere(tmp_path: Path, keys: Keys) -> None:
    """It is not looked for; with --bundle it is checked."""
    root = bundles.write(tmp_path / "bundle")
    qualify.write(Bundle.open(root), tmp_path / "r", private_key(keys.private, no_passphrase))
    key = public_key(keys.public)
    assert [verify(tmp_path / "r", key).status, verify(tmp_path / "r", key, root).status] == [2, 0]
    flip("results.jsonl")(root)
    assert verify(tmp_path / "r", key, root).status == 1


def test_the_report_of_another_version_is_vouched_for_by_its_signature(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page cannot be made again; with the signer's key that is no matter, without it is open."""
    monkeypatch.setattr("pytest_seves.report.verify.package_sha256", lambda: "f" * 64)
    assert verify(signed, public_key(keys.public)).status == 0
    assert any("made by another pytest-seves" in text for text in verify(signed, None).open)


def test_a_model_s_report_says_so(tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    """However well it is signed, its last word is that it is no qualification."""
    host = {"model": "linux-6.1", "description": "model", "facts": "lab1/facts.json"}
    root = bundles.write(tmp_path / "r" / "evidence", run=bundles.about(hosts={"lab1": host}))
    qualify.write(Bundle.open(root), tmp_path / "r", private_key(keys.private, no_passphrase))
    found = verify(tmp_path / "r", public_key(keys.public))
    assert found.status == 0
    assert "nothing in it qualifies anything: MODEL: NOT A QUALIFICATION" in found.trust
    assert main(["verify", str(tmp_path / "r"), "--key", str(keys.public)]) == 0
    assert capsys.readouterr().out.endswith("\nVERIFIED, MODEL: NOT A QUALIFICATION\n")


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line: exit 2, and no traceback."""
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "got no directory" in capsys.readouterr().err


def test_what_a_report_says_does_nothing_to_a_terminal(
    signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes in names are shown, not sent."""
    (signed / "a\x1b[31mb").write_text("")
    assert main(["verify", str(signed)]) == 1
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert r"a\x1b[31mb" in told
