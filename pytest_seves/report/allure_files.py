# SPDX-License-Identifier: GPL-2.0-or-later
"""What Allure is told beside its results: categories, environment, the report's name, links.

Our outcomes in Allure's words: passed, an unexpected pass among them; failed (the product is wrong); broken
(an error: our rig is wrong); unknown (undecided: neither, and never green); skipped (it does not apply, or a
known defect, which is marked as known). Messages of the others begin with our word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_seves.text import one_line

STATUS = {
    "passed": "passed",
    "failed": "failed",
    "unexpected pass": "passed",
    "error": "broken",
    "undecided": "unknown",
    "known defect": "skipped",
    "skipped": "skipped",
}
#: The first one that matches takes a result.
CATEGORIES: list[dict[str, Any]] = [
    {
        "name": "Unexpected pass: a known defect did not happen",
        "matchedStatuses": ["passed"],
        "messageRegex": r"unexpected pass\b[\s\S]*",
    },
    {"name": "Failed: the product is wrong", "matchedStatuses": ["failed"]},
    {"name": "Error: the rig is broken, the product was not judged", "matchedStatuses": ["broken"]},
    {"name": "Undecided: the launch ended before the point in question", "matchedStatuses": ["unknown"]},
    {
        "name": "Known defect of the product",
        "matchedStatuses": ["skipped"],
        "messageRegex": r"known defect\b[\s\S]*",
    },
    {"name": "Skipped: does not apply here", "matchedStatuses": ["skipped"]},
]
MODEL = "MODEL: NOT A QUALIFICATION"
_COMMIT = re.compile(r"(?P<qemu>QEMU )?commit (?P<hash>[0-9a-f]{10,40})\b")
_QEMU = "https://gitlab.com/qemu-project/qemu/-/commit/"
_LINUX = "https://git.kernel.org/linus/"


def files(environment: Mapping[str, str], model: bool) -> dict[str, str]:
    """Content of files in the directory of results, by name.

    Allure 2 reads ``categories.json``; Allure 3 has categories and the report's name in its configuration:
    ``allure generate --config DIR/allurerc.json DIR``.
    """
    name = "pytest-seves" + (f", {MODEL}" if model else "")
    lines = (f"{_key(name)} = {_value(value)}\n" for name, value in sorted(environment.items()))
    return {
        "categories.json": json.dumps(CATEGORIES, indent=2) + "\n",
        "environment.properties": "".join(lines),
        "allurerc.json": json.dumps({"name": name, "categories": CATEGORIES}, indent=2) + "\n",
    }


def links(text: str) -> Iterator[tuple[str, str]]:
    """(URL, name) of each commit that a source or a reference of the catalogue names."""
    for match in _COMMIT.finditer(text):
        site = _QEMU if match["qemu"] else _LINUX
        yield site + match["hash"], match[0]


def _key(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _value(text: str) -> str:
    r"""On one line, in ASCII; a backslash is doubled: a properties file has escapes of its own."""
    return one_line(text, 400).encode("ascii", "backslashreplace").decode().replace("\\", "\\\\")
