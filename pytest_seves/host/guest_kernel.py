# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux kernel that guests of a host boot: the one of its lab file, or the one that the host runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .inventory import GuestKernel
from .readiness_table import Row


@dataclass(frozen=True)
class KernelFacts:
    """A kernel on the host; without `sha256` it could not be read, and `error` says why.

    :ivar release: as the image tells it, None where it is no bzImage.
    :ivar msr_module: path of its msr driver; None where it has none as a module.
    """

    path: str | None = None
    size: int | None = None
    sha256: str | None = None
    release: str | None = None
    msr_module: str | None = None
    error: str | None = None


def decode_kernel(raw: Mapping[str, Any]) -> KernelFacts:
    """Facts from the agent's answer; what is not of its type was not told."""
    names = ("path", "sha256", "release", "msr_module", "error")
    text = {name: raw[name] for name in names if isinstance(raw.get(name), str)}
    size = raw.get("size")
    whole = isinstance(size, int) and not isinstance(size, bool)
    if "sha256" not in text:
        text.setdefault("error", "not told")
    return KernelFacts(size=size if whole else None, **text)


def rows(kernel: KernelFacts, declared: GuestKernel) -> Iterator[Row]:
    """What the readiness table says of it. Only a kernel that the lab file names must be there."""
    row, name = "guest-kernel", "guest kernel"
    if kernel.sha256 is None:
        value = f"{kernel.path or 'none named'}: {kernel.error}"
        if declared.kernel is None:
            yield Row(row, name, "ok", f"none, and Linux guests are skipped ({value})")
            return
        advice = (
            "put there what [guest] kernel of the lab file names, for this user to read, or correct the path"
        )
        yield Row(row, name, "fail", value, advice)
        return
    value = f"{kernel.path}, {kernel.release or 'no bzImage'}"
    if declared.sha256 not in (None, kernel.sha256):
        advice = (
            f"the lab file pins {declared.sha256}. The kernel was replaced, by an update or by someone: find"
            " out, then pin the new one"
        )
        yield Row(row, name, "fail", f"{value}, {kernel.sha256}", advice)
        return
    yield Row(row, name, "ok", f"{value}, {kernel.sha256} ({'as' if declared.sha256 else 'not'} pinned)")
