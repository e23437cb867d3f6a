# SPDX-License-Identifier: GPL-2.0-or-later
"""What is noted of each conformance test for every kind of report: pytest's user properties, in words.

``requirement level host vcpus policy init_path evidence``. They cross xdist with the report. A test that is
not parametrised over guests has the vCPUs, policy and init path of those that it launched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .guest.spec import policy_name

if TYPE_CHECKING:
    from .guest.spec import GuestSpec

#: An init path that the test leaves to the VMM.
OWN = "own"
GUEST = ("vcpus", "policy", "init_path")
#: What the case says of its guest.
CASE: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def note_case(item: pytest.Item, requirement: str, level: str) -> None:
    """Note what is known when the test is collected."""
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    item.stash[CASE] = case = {}
    if "vcpus" in parameters:
        case["vcpus"] = str(parameters["vcpus"])
    if "policy" in parameters:
        case["policy"] = policy_name(parameters["policy"])
    for name in ("init_path", "es_path"):  # of launches, and of direct calls
        if name in parameters:
            case["init_path"] = str(getattr(parameters[name], "name", parameters[name] or OWN))
    item.user_properties += [("requirement", requirement), ("level", level), *case.items()]


def note_guest(item: pytest.Item, spec: GuestSpec) -> None:
    """Note a guest that the test was given."""
    case = item.stash.get(CASE, {})
    said = {"vcpus": str(spec.vcpus), "policy": policy_name(spec.policy), "init_path": spec.init_path or OWN}
    for name, word in said.items():
        if name not in case:
            _add(item, name, word)


def _add(item: pytest.Item, name: str, word: str) -> None:
    """Add to a list of words, which is one property: readers want each name once."""
    words = [str(value) for key, value in item.user_properties if key == name]
    if not words:
        item.user_properties.append((name, word))
    elif word not in words[0].split(", "):
        at = item.user_properties.index((name, words[0]))
        item.user_properties[at] = (name, f"{words[0]}, {word}")
