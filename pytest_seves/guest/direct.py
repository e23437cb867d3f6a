# SPDX-License-Identifier: GPL-2.0-or-later
"""The factory behind the fixture `kvm`: direct calls on a host, without a VMM."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_seves.errors import HostError, Unsupported
from pytest_seves.spec import kvm

from .answers import Answers
from .calls import Step, Steps, flat
from .init_path import INIT2, InitPath

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

_TIMEOUT_S = 30.0
_LONGEST_NAME = 150


class Kvm:
    """Runs programs of calls on one host.

    :param folder: where the transcript of each program goes, None to keep none.
    """

    def __init__(self, target: Target, test: str = "", folder: Path | None = None) -> None:
        self._target = target
        self._file = _file_name(test)
        self._folder = folder

    def __call__(self, *steps: Steps, timeout_s: float = _TIMEOUT_S) -> Answers:
        """Run the steps in a process of their own on the host; everything they made ends with it.

        :raise HostError: a device cannot be opened.
        :raise RigError: the program could not be run. A call that is refused is an answer.
        """
        program = tuple(flat(steps))
        wire = [{**step.wire, "needed": step.needed} for step in program]
        told = self._target.client.call("calls", {"program": wire, "timeout_s": timeout_s})
        answers = Answers(program, told["answers"])
        self._keep(answers)
        self._require_devices(program, told["answers"])
        return answers

    def require(self, path: InitPath) -> None:
        """Skip where the kernel lacks an init path.

        :raise Unsupported: names what is missing.
        """
        if path is INIT2 and not (self._target.facts.vm_types or 0) >> kvm.KVM_X86_SEV_ES_VM & 1:
            raise Unsupported(
                f"{self._target.name}: this kernel has no KVM_SEV_INIT2: KVM_CAP_VM_TYPES has no SEV-ES VM"
            )

    def _require_devices(self, program: tuple[Step, ...], answers: list[dict[str, object]]) -> None:
        for step, answer in zip(program, answers, strict=True):
            if step.wire["do"] == "open" and answer.get("errno"):
                raise HostError(
                    f"{step.label}: {answer['errno']}; see --sev-check",
                    host=self._target.name,
                    step=step.label,
                )

    def _keep(self, answers: Answers) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / self._file).open("a") as file:
                file.write("".join(f"{line}\n" for line in answers.lines()) + "\n")


def _file_name(test: str) -> str:
    """A name for the transcript of a test, whatever its parameters are called."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", test).strip("-.")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{sha256(test.encode(errors='backslashreplace')).hexdigest()[:8]}"
    return f"{name}.txt"
