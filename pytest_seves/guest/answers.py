# SPDX-License-Identifier: GPL-2.0-or-later
"""What the steps of a program of direct calls were answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_seves.errors import Undecided
from pytest_seves.spec.layout import Layout
from pytest_seves.spec.sev import NO_FIRMWARE_CALL, firmware_status_name

from .calls import Step


class Errno(str):
    """An errno's name that knows the answer it stands in, for an assertion that shows it."""

    answer = ""

    @classmethod
    def of(cls, answer: Answer) -> Errno:
        """The name of the errno of `answer`."""
        name = cls(answer.errno)
        name.answer = repr(answer)
        return name


@dataclass(frozen=True)
class Answer:
    """What one step was answered; prints as ``<#3 KVM_SEV_ES_INIT (vm) = -22 EINVAL, firmware not called>``.

    :ivar result: what the call returned; negative: -errno.
    :ivar errno: the errno's name, None after success.
    :ivar firmware: the firmware's status code, of SEV commands; NO_FIRMWARE_CALL where none was told.
    :ivar out: the structure, or the memory, as the call left it.
    """

    number: int
    label: str
    result: int
    errno: str | None
    firmware: int | None = None
    out: bytes = b""
    exit_reason: int | None = None
    kicked: bool = False
    values: Mapping[str, int] | None = None

    @property
    def ok(self) -> bool:
        """The call succeeded."""
        return self.errno is None

    def units(self, resource: str) -> int:
        """Units of a resource that :func:`asids_in_use` counted; 0 where the kernel does not count."""
        return (self.values or {}).get(resource, 0)

    def decode(self, layout: Layout) -> dict[str, Any]:
        """:attr:`out` as a structure."""
        return layout.decode(self.out)

    def __repr__(self) -> str:
        text = f"#{self.number} {self.label} = {self.result}" + (f" {self.errno}" if self.errno else "")
        if self.firmware is not None and not self.ok:
            called = "" if self.firmware == NO_FIRMWARE_CALL else "firmware status "
            text += f", {called}{firmware_status_name(self.firmware)}"
        if self.exit_reason is not None:
            text += f", exit reason {self.exit_reason}" + (", kicked" if self.kicked else "")
        return f"<{text}>"


class Answers(Sequence[Answer]):
    """The answers of a program, in its order.

    Taking one that does not exist, since a step before it was refused, raises :class:`Undecided`.
    """

    def __init__(self, steps: Sequence[Step], answers: Sequence[Mapping[str, Any]]) -> None:
        if len(steps) != len(answers):
            raise ValueError(f"{len(steps)} steps, {len(answers)} answers")
        self._steps = tuple(steps)
        self._answers = tuple(answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        answer = self._answers[number]
        if "not_run" in answer:
            cause = self._answer(answer["not_run"])
            raise Undecided(f"#{number} {self._steps[number].label} was not run, since {cause!r}")
        return self._answer(number)

    @property
    def raw(self) -> list[dict[str, Any]]:
        """The answers as the agent gave them; all JSON."""
        return [dict(answer) for answer in self._answers]

    @property
    def given(self) -> list[Answer]:
        """The answers of the steps that were run."""
        return [self._answer(n) for n, answer in enumerate(self._answers) if "not_run" not in answer]

    def _answer(self, number: int) -> Answer:
        answer = dict(self._answers[number])
        answer["out"] = bytes.fromhex(answer.get("out", ""))
        plain = Answer(number, self._steps[number].label, **answer)
        return plain if plain.ok else replace(plain, errno=Errno.of(plain))

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The transcript, one line for each step."""
        for number, (step, answer) in enumerate(zip(self._steps, self._answers, strict=True)):
            if "not_run" in answer:
                yield f"#{number} {step.label}: not run, since #{answer['not_run']} was refused"
            else:
                yield repr(self._answer(number)).strip("<>")
