# SPDX-License-Identifier: GPL-2.0-or-later
"""The factory behind the fixture `kvm`: direct calls on a host, without a VMM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_seves.errors import HostError

from .answers import Answers
from .calls import Step, Steps, flat
from .init_path import INIT2, InitPath
from .seam import require_init2

if TYPE_CHECKING:
    from pytest_seves.host.target import Target

    from .archive import Archive, Record

_TIMEOUT_S, _MARGIN_S = 30.0, 10.0
_LONGEST_NAME = 150


class Kvm:
    """Runs programs of calls on one host.

    :param test: for the name of the transcript of each program.
    :param archive: where that is written down, None to keep none.
    :param tell: told what names it in the bundle.
    """

    def __init__(
        self,
        target: Target,
        test: str = "",
        archive: Archive | None = None,
        tell: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._target = target
        self._test = test
        self._archive = archive
        self._tell = tell

    def __call__(self, *steps: Steps, timeout_s: float = _TIMEOUT_S) -> Answers:
        """Run the steps in a process of their own on the host; everything they made ends with it.

        :raise HostError: a device cannot be opened.
        :raise RigError: the program could not be run. A call that is refused is an answer.
        """
        program = tuple(flat(steps))
        wire = [{**step.wire, "needed": step.needed} for step in program]
        request = {
            "program": wire,
            "timeout_s": timeout_s,
            # As a guest: what it finds of the ASIDs is not to depend on who launches meanwhile.
            "side_by_side": self._target.side_by_side(),
        }
        # For a turn, for a place, and for the program.
        told = self._target.client.ahead.call("calls", request, 3 * timeout_s + _MARGIN_S)
        answers = Answers(program, told["answers"])
        if self._archive:
            self._tell(self._archive.calls(self._test, program, answers))
        self._require_devices(program, told["answers"])
        return answers

    def require(self, path: InitPath) -> None:
        """Skip where the kernel lacks an init path.

        :raise Unsupported: names what is missing.
        """
        if path is INIT2:
            require_init2(self._target.name, self._target.facts)

    def _require_devices(self, program: tuple[Step, ...], answers: list[dict[str, object]]) -> None:
        for step, answer in zip(program, answers, strict=True):
            if step.wire["do"] == "open" and answer.get("errno"):
                raise HostError(
                    f"{step.label}: {answer['errno']}; see --sev-check",
                    host=self._target.name,
                    step=step.label,
                )
