# SPDX-License-Identifier: GPL-2.0-or-later
"""What the agent says to VMMs that play along and that do not. Small programs stand for the VMM."""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import pytest

from tests.agent.standing import QUIET

LocalAgent = Any
#: A VMM that greets; `told` reads the next commands, `say` says something, `answer` answers one.
_GREETS = """
import json, os, socket, sys, time
peer, console = socket.socket(fileno=3), socket.socket(fileno=4)
decoder, pending = json.JSONDecoder(), ''
def say(**message): peer.sendall(json.dumps(message).encode() + b'\\r\\n')
def answer(command, **value): say(**({'return': {}} if not value else value), id=command['id'])
def told(count=1):
    global pending
    commands = []
    while len(commands) < count:
        try:
            command, end = decoder.raw_decode(pending)
        except ValueError:
            data = peer.recv(1 << 16).decode()
            if not data:
                sys.exit(0)
            pending += data
            continue
        pending = pending[end:].lstrip()
        commands.append(command)
    return commands
say(QMP={'version': {}, 'capabilities': CAPABILITIES})
first, = told()
say(**{'return': {}})
"""
#: It answers whatever else it is asked, until it is hung up on.
_ANSWERS = "while True: answer(*told())\n"
STOP = {"do": "qmp", "command": "stop", "arguments": {}, "until": []}


def ask(command: str, *until: str, **arguments: Any) -> dict[str, Any]:
    """A step."""
    return {"do": "qmp", "command": command, "arguments": arguments, "until": list(until)}


def observe(
    agent: LocalAgent, program: str, *steps: dict[str, Any], capabilities: str = "[]", **options: Any
) -> dict[str, Any]:
    """Take steps with a VMM that greets and then does as `program` says; before it runs: it never does."""
    number = start(agent, program, *steps, capabilities=capabilities, **options)
    result: dict[str, Any] = agent.receive(lambda frame: frame.get("id") == number)["ok"]
    return result


def start(
    agent: LocalAgent, program: str, *steps: dict[str, Any], capabilities: str = "[]", **options: Any
) -> int:
    """Ask for that; the number of the request."""
    argv = [sys.executable, "-c", _GREETS.replace("CAPABILITIES", capabilities) + program]
    script = {**QUIET, "paused": True, "paused_steps": list(steps)}
    request = {"argv": argv, "script": script, "mode": "stop", "timeout_s": 15, **options}
    number: int = agent.ask("observe", **request)
    return number


def said(result: dict[str, Any], way: str) -> list[dict[str, Any]]:
    """The messages that went "in" to the VMM, or came "out"."""
    text, messages = "".join(text for _, to, text in result["qmp"] if to == way), []
    while text:
        message, end = json.JSONDecoder().raw_decode(text)
        messages.append(message)
        text = text[end:].lstrip()
    return messages


def commands(result: dict[str, Any]) -> list[str]:
    """What the VMM was told, but for the capabilities."""
    return [message["execute"] for message in said(result, "in")[1:]]


def most_under_way(result: dict[str, Any]) -> int:
    """Commands that were said and not yet answered, at most; by the ids in the transcript."""
    text, most = {"in": "", "out": ""}, 0
    for _, way, more in result["qmp"]:
        text[way] += more
        most = max(most, text["in"].count('"id"') - text["out"].count('"id"'))
    return most


# Greeting


@pytest.mark.parametrize(("capabilities", "enabled"), [("[]", {}), ("['oob']", {"enable": ["oob"]})])
def test_capabilities(agent: LocalAgent, capabilities: str, enabled: dict[str, Any]) -> None:
    """What it can do out of band is enabled."""
    result = observe(agent, "sys.exit()", capabilities=capabilities)
    assert said(result, "in")[0] == {"execute": "qmp_capabilities", "arguments": enabled}


@pytest.mark.parametrize(
    "refusal", ["say(error={'class': 'x', 'desc': 'y'})", "say(id=3)", "say(event='STOP')"]
)
def test_capabilities_that_are_refused(agent: LocalAgent, refusal: str) -> None:
    """A VMM that does not take them is asked nothing."""
    argv = [
        sys.executable,
        "-c",
        _GREETS.replace("CAPABILITIES", "[]").replace("say(**{'return': {}})", refusal),
    ]
    result = agent.call("observe", argv=argv, script=QUIET, mode="stop", timeout_s=10)["ok"]
    assert result["phase"] == "waiting for the QMP greeting"
    assert commands(result) == []


# Commands


def test_an_error_is_an_answer(agent: LocalAgent) -> None:
    """The next command follows, and no event of a command that was refused is waited for."""
    program = "answer(*told(), error={'class': 'x', 'desc': 'y'})\ntold()\nsys.exit()"
    result = observe(agent, program, ask("stop", "STOP"), ask("cont"))
    assert commands(result) == ["stop", "cont"]
    assert result["phase"] == "executing cont"


@pytest.mark.parametrize(
    ("lie", "goes_on"),
    [
        ("say(id=c['id'])", False),
        ("say(error={'class': 'x', 'desc': 'y'})", False),
        ("say(id='00099', **{'return': {}}); say(id=[1], **{'return': {}}); answer(c)", True),
        ("say(event=5); say(event='NOBODY_ASKED'); answer(c)", True),
        ("peer.sendall(b'[]\\n')", False),
        ("peer.sendall(b'[' * 100000 + b'\\n')", False),
        ("peer.sendall(b'\\xff\\n')", False),
        ("peer.sendall(b'x' * (11 << 20))", False),
    ],
    ids=["neither", "error-without-id", "unknown-ids", "events", "list", "deep", "no-utf-8", "endless-line"],
)
def test_answers_that_make_no_sense(agent: LocalAgent, lie: str, goes_on: bool) -> None:
    """They are evidence, which says what was under way; the agent lives on."""
    result = observe(agent, f"c, = told()\n{lie}\n{_ANSWERS}", ask("stop"), ask("query-name"), timeout_s=4)
    assert result["phase"] == ("waiting for every vCPU to run" if goes_on else "executing stop")
    assert ("query-name" in commands(result)) == goes_on
    assert "ok" in agent.call("exec", argv=["true"], timeout_s=5)


def test_last_words(agent: LocalAgent) -> None:
    """A VMM that answers, but not to what it was asked, is asked how it stands."""
    result = observe(agent, f"say(id=told()[0]['id'])\n{_ANSWERS}", ask("stop"))
    assert commands(result) == ["stop", "query-status", "human-monitor-command"]
    assert result["phase"] == "executing stop"


def test_many_are_under_way_at_once(agent: LocalAgent) -> None:
    """Of 65 commands the VMM gets 64 before it answers one, and the last when it has answered them."""
    program = (
        "for count in (64, 1):\n    commands = told(count)\n"
        "    if pending: sys.exit('a command too many')\n"
        "    for one in commands: answer(one)\n"
    )
    names = [f"command-{number}" for number in range(13)]
    step = {"do": "repeat", "commands": [ask(name) for name in names], "times": 5}
    result = observe(agent, program, step)
    assert result["exit"] == {"status": 0}
    assert commands(result)[:65] == names * 5
    assert most_under_way(result) == 64


def test_a_vmm_that_does_not_read(agent: LocalAgent) -> None:
    """It holds up its own launch alone, which its deadline ends."""
    step = {"do": "repeat", "commands": [ask("a", text="x" * 65536)], "times": 64}
    number = start(agent, "time.sleep(600)", step, timeout_s=3)
    assert "ok" in agent.call("exec", argv=["true"], timeout_s=2)
    result = agent.receive(lambda frame: frame.get("id") == number)["ok"]
    assert (result["killed"], result["phase"]) == (True, "executing a")


def test_a_vmm_that_floods(agent: LocalAgent) -> None:
    """What it says beyond the limit is counted, the conversation goes on, and others are not held up."""
    program = (
        'for n in range(2000): peer.sendall((b\'{"event": "E", "data": "%s"}\\n\' % (b\'x\' * 4096)))\n'
        "answer(*told())\ntold()"
    )
    number = start(agent, program, ask("stop"), ask("cont"), limit=1 << 20)
    assert "ok" in agent.call("exec", argv=["true"], timeout_s=5)
    result = agent.receive(lambda frame: frame.get("id") == number)["ok"]
    assert result["phase"] == "executing cont"
    assert result["qmp_dropped"] > 6 << 20
    assert sum(len(text) for _, _, text in result["qmp"]) <= 1 << 20


# Events


def test_an_event_after_a_command(agent: LocalAgent) -> None:
    """One that came before the command does not count, one that comes with its answer does."""
    program = (
        "say(event='STOP')\nc, = told()\nanswer(c)\nc, = told()\nsay(event='STOP'); answer(c)\n" + _ANSWERS
    )
    waits = observe(agent, program, ask("a"), ask("stop", "STOP"), timeout_s=3)
    assert waits["phase"] == "waiting for every vCPU to run"
    program = "say(event='STOP')\nc, = told()\nanswer(c)\n" + _ANSWERS
    waits = observe(agent, program, ask("a"), ask("stop", "STOP"), timeout_s=2)
    assert (waits["phase"], waits["killed"]) == ("waiting for STOP after stop", True)


def test_an_event_that_came_before(agent: LocalAgent) -> None:
    """Waiting for an event as a step of its own finds it, once; then it is late, and the VMM is asked why."""
    program = "say(event='RESET'); say(event='STOP')\n" + _ANSWERS
    wait = {"do": "await", "events": ["STOP"], "timeout_s": 0.5}
    result = observe(agent, program, ask("a"), wait, ask("b"), wait)
    assert result["phase"] == "waiting for STOP"
    assert commands(result) == ["a", "b", "query-status", "human-monitor-command"]


def test_a_vmm_that_announces_its_end_is_left_in_peace(agent: LocalAgent) -> None:
    """It is asked nothing more, unless it takes its time."""
    ends = "c, = told()\nanswer(c)\nsay(event='SHUTDOWN')\ntime.sleep(0.3)\n"
    wait = {"do": "await", "events": ["SHUTDOWN"], "timeout_s": 5}
    for step in (ask("system_powerdown", "SHUTDOWN"), wait):
        result = observe(
            agent, ends, ask("a") if step is wait else step, *([step] if step is wait else []), STOP
        )
        assert "stop" not in commands(result)
        assert result["exit"] == {"status": 0}
    lingers = f"c, = told()\nanswer(c)\nsay(event='SHUTDOWN')\n{_ANSWERS}"
    assert "stop" in commands(observe(agent, lingers, ask("a", "SHUTDOWN"), STOP, timeout_s=4))


# The console


def console(pattern: str, *, fresh: bool = False, timeout_s: float = 10) -> dict[str, Any]:
    """A step."""
    return {"do": "console", "pattern": pattern, "fresh": fresh, "timeout_s": timeout_s}


def test_what_the_console_says(agent: LocalAgent) -> None:
    """What came before counts, unless something fresh is wanted, and in pieces it is found, too."""
    program = (
        "console.sendall(b'ready ')\nanswer(*told())\n"
        "console.sendall(b'rea'); time.sleep(0.2); console.sendall(b'dy')\n" + _ANSWERS
    )
    result = observe(
        agent, program, console("ready"), ask("a"), console("ready", fresh=True), ask("b"), timeout_s=4
    )
    assert commands(result)[:2] == ["a", "b"]


def test_what_is_typed(agent: LocalAgent) -> None:
    """It reaches whoever reads the console, whole, and is not waited for."""
    program = (
        "c, = told()\nanswer(c)\nheard = console.recv(64)\nsys.exit(0 if heard == b'reset -s\\r' else 3)"
    )
    result = observe(agent, program, ask("a"), {"do": "type", "text": "reset -s\r"})
    assert result["exit"] == {"status": 0}


def test_nobody_to_type_for(agent: LocalAgent) -> None:
    """A VMM that has closed its console ends the conversation, and the phase says at what."""
    program = "console.close()\nc, = told()\nanswer(c)\n" + _ANSWERS
    result = observe(agent, program, ask("a"), {"do": "type", "text": "x\r"}, ask("b"), timeout_s=4)
    assert result["phase"] == "typing 'x\\r' on the console"
    assert "b" not in commands(result)


def test_a_console_that_is_silent(agent: LocalAgent) -> None:
    """The wait ends at its own limit; how the VMM stands was asked meanwhile."""
    began = time.monotonic()
    result = observe(agent, _ANSWERS, console("ready", timeout_s=1.5))
    assert time.monotonic() - began < 8
    assert result["phase"] == "waiting for 'ready' on the console"
    assert commands(result)[-2:] == ["query-status", "human-monitor-command"]


def test_a_guest_that_has_stopped(agent: LocalAgent) -> None:
    """It says no more, so the wait ends at once; what it had said just before is looked at."""
    program = "while True: answer(*told(), **{'return': {'running': False}})"
    began = time.monotonic()
    result = observe(agent, program, console("ready", timeout_s=600))
    assert time.monotonic() - began < 8
    assert result["phase"] == "waiting for 'ready' on the console"


# Dumps and the debugger


def test_dumps(agent: LocalAgent) -> None:
    """What the VMM wrote comes back, nothing of one that refuses, and no file is left."""
    program = (
        "c, = told()\nopen(c['arguments']['protocol'][5:], 'wb').write(b'ELF')\nanswer(c)\n"
        "c, = told()\nanswer(c, error={'class': 'x', 'desc': 'y'})\n"
    )
    dump = {"do": "dump", "begin": 0x1000, "length": 0x2000}
    result = observe(agent, program, dump, dump)
    assert [base64.b64decode(one) for one in result["dumps"]] == [b"ELF", b""]
    asked = said(result, "in")[1]["arguments"]
    assert (asked["paging"], asked["begin"], asked["length"]) == (False, 0x1000, 0x2000)
    assert not list(agent.temp.glob("pytest-seves-*/dump*"))


def test_a_dump_that_cannot_be_read(agent: LocalAgent) -> None:
    """It is our side that failed: the request is, with the reason, and the VMM is gone."""
    program = "c, = told()\nos.unlink(c['arguments']['protocol'][5:])\nanswer(c)\ntime.sleep(600)"
    dump = {"do": "dump", "begin": 0, "length": 0x1000}
    number = start(agent, program, dump, timeout_s=60)
    error = agent.receive(lambda frame: frame.get("id") == number)["error"]
    assert error["kind"] == "ENOENT"
    assert agent.call("alone.begin", timeout_s=5)["ok"] == {}


def test_a_debugger(agent: LocalAgent) -> None:
    """Packets get their answers, a step is interrupted at once, and it leaves."""
    program = (
        "stub = socket.socket(fileno=5)\n"
        "assert stub.recv(5) == b'$g#67'; stub.sendall(b'+$00#60'); assert stub.recv(1) == b'+'\n"
        "data = b''\nwhile not data.endswith(b'\\x03'): data += stub.recv(6)\n"
        "stub.sendall(b'+$T05#b9'); assert stub.recv(1) == b'+'; assert stub.recv(1) == b''\n" + _ANSWERS
    )
    result = observe(agent, program, {"do": "gdb", "packets": ["g", "s"]}, ask("a"), gdb=True, timeout_s=4)
    assert "a" in commands(result), base64.b64decode(result["stderr"]["head"]).decode()
    assert "".join(text for _, way, text in result["gdb"] if way == "in") == "$g#67+$s#73\x03+"


def test_a_debugger_that_is_told_too_much(agent: LocalAgent) -> None:
    """Packets that nobody asked for are not kept for ever."""
    program = f"stub = socket.socket(fileno=5); stub.sendall(b'$#00' * 5000)\n{_ANSWERS}"
    result = observe(agent, program, ask("a"), {"do": "gdb", "packets": ["g"] * 3}, gdb=True, timeout_s=5)
    assert result["phase"].startswith("talking to the gdbstub: g: more than 1000 packets")


def test_no_socket_for_a_debugger(agent: LocalAgent) -> None:
    """It is told as what was under way."""
    result = observe(agent, _ANSWERS, {"do": "gdb", "packets": ["g"]})
    assert result["phase"] == "talking to the gdbstub: no socket was made for it"
