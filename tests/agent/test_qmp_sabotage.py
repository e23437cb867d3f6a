# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that answers QMP wrongly: which answers change, and that nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_seves.agent.qmp_sabotage import QmpSaboteur, load

MIGRATE = {"name": "m", "command": "migrate", "answer": {"return": {}}}
SHOWN = {
    "name": "s",
    "command": "human-monitor-command",
    "argument": "registers",
    "replace": ["RAX=0", "RAX=5"],
}


def request(command: str, identifier: Any = 1, **arguments: Any) -> bytes:
    """A QMP request as a client writes it."""
    return json.dumps({"execute": command, "arguments": arguments, "id": identifier}).encode()


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"command": "migrate", "answer": {}}, "wanted a name and a command"),
        ({"name": "x", "answer": {}}, "wanted a name and a command"),
        ({"name": "x", "command": "migrate"}, "wanted one of answer and replace"),
        ({**MIGRATE, "replace": ["a", "b"]}, "wanted one of answer and replace"),
        ({**MIGRATE, "reply": {}}, r"unknown \['reply'\]"),
        ({"name": "x", "command": "migrate", "replace": ["(", ""]}, "is no regular expression"),
    ],
)
def test_misuse(rule: dict[str, Any], complaint: str) -> None:
    """A rule that makes no sense is refused with its name."""
    with pytest.raises(ValueError, match=complaint):
        load([rule])


def test_an_answer_in_the_place_of_the_vmm() -> None:
    """The command does not reach the VMM; the answer carries its id. Others pass as they are."""
    saboteur = QmpSaboteur(load([MIGRATE]))
    stop = request("stop", 7)
    migrate = request("migrate", "a", uri="x")
    assert saboteur.towards_vmm(stop + migrate) == [
        (stop, None),
        (migrate, b'{"return": {}, "id": "a"}\r\n'),
    ]


def test_a_command_in_pieces() -> None:
    """A message is judged when it is whole."""
    saboteur = QmpSaboteur(load([MIGRATE]))
    migrate = request("migrate")
    assert saboteur.towards_vmm(migrate[:10]) == []
    assert saboteur.towards_vmm(migrate[10:])[0][0] == migrate


def test_an_answer_that_is_altered() -> None:
    """Only the answer to the named command with the named argument changes, whichever comes first."""
    saboteur = QmpSaboteur(load([SHOWN]))
    saboteur.towards_vmm(request("human-monitor-command", 1, command_line="info registers"))
    saboteur.towards_vmm(request("human-monitor-command", 2, command_line="info mtree"))
    said = b'{"id": 2, "return": "RAX=0"}\r\n{"event": "STOP"}\r\n{"id": 1, "return": "RAX=0"}\r\n'
    assert saboteur.from_vmm(said[:20]) == b""
    assert saboteur.from_vmm(said[20:]) == said.replace(b'1, "return": "RAX=0', b'1, "return": "RAX=5')


def test_nonsense_passes() -> None:
    """What is no QMP is no business of ours."""
    saboteur = QmpSaboteur(load([SHOWN]))
    saboteur.towards_vmm(request("human-monitor-command", command_line="info registers"))
    assert saboteur.from_vmm(b"hello\n[1]\n\xff\n") == b"hello\n[1]\n\xff\n"
