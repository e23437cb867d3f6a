# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a report beside its bundle: report.json, report.html and, with a key, report.dsse.json."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_seves.errors import UsageError
from pytest_seves.evidence.bundle import ABOUT, Bundle
from pytest_seves.evidence.folder import Folder, json_file, write_whole

from . import html
from .plan import package_sha256
from .qualification import document

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

REPORT, PAGE, ENVELOPE = "report.json", "report.html", "report.dsse.json"
#: Where a run puts its bundle below a report, if not told otherwise.
EVIDENCE = "evidence"
Json = dict[str, Any]


def write(bundle: Bundle, output: Path, signer: CryptoSigner | None) -> Json:
    """Write the report of a bundle; what another one left in `output` is replaced.

    :param output: the directory; links lead into the bundle where that is below it.
    :return: the document.
    :raise UsageError: the report would be inside the bundle.
    :raise EvidenceError: the bundle is damaged.
    """
    root, output = bundle.root.resolve(), output.resolve()
    if output.is_relative_to(root):
        raise UsageError(f"{output}: a report is not written into the bundle that it speaks of: {root}")
    report = document(
        bundle,
        path=root.relative_to(output).as_posix() if root.is_relative_to(output) else None,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        keyid=signer.public_key.keyid if signer else None,
        package=package_sha256(),
    )
    content, page = to_bytes(report), html.render(report)
    output.mkdir(parents=True, exist_ok=True)
    for name in (ENVELOPE, REPORT, PAGE):  # a signature of another report does not outlive it
        (output / name).unlink(missing_ok=True)
    if signer:
        from .signature import sign

        write_whole(output / ENVELOPE, sign(subjects(report, content, page), predicate(report), signer))
    write_whole(output / PAGE, page)
    write_whole(output / REPORT, content)
    return report


def to_bytes(report: Json) -> bytes:
    """report.json, ASCII: what is hostile in it is escaped."""
    return json_file(report)


def subjects(report: Json, content: bytes, page: bytes) -> dict[str, str]:
    """What a signature speaks of: both files and the bundle's first, whose seal names all others."""
    return {
        REPORT: Folder.digest(content),
        PAGE: Folder.digest(page),
        ABOUT: report["bundle"]["sha256"],
    }


def predicate(report: Json) -> Json:
    """What is said of them."""
    reached = {
        name: [level["name"] for level in host["levels"] if level["reached"]]
        for name, host in report["hosts"].items()
    }
    suite = {key: report["suite"][key] for key in ("version", "sha256", "package")}
    return {"run": report["bundle"]["run"], "made": report["made"], "suite": suite, "levels": reached} | {
        "stamps": report["stamps"]
    }
