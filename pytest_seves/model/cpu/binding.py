# SPDX-License-Identifier: GPL-2.0-or-later
"""unicorn's Python package, held to one release."""

from __future__ import annotations

from typing import Any

#: The hidden state's layout and the intercepts' behaviour are this release's.
UNICORN_RELEASE = "2.1.4"


class EngineUnavailable(RuntimeError):
    """Guest code cannot execute here; the text says why and what to do."""


def unicorn_error() -> type[Exception]:
    """What emulation raises."""
    from unicorn.unicorn_py3 import unicorn as binding

    error: type[Exception] = binding.UcError
    return error


def register(name: str) -> int:
    """unicorn's number of a register."""
    from unicorn import x86_const

    return int(getattr(x86_const, f"UC_X86_REG_{name}"))


def not_as_it_was(what: str) -> str:
    """Why an engine of the right release cannot be used."""
    return (
        f"unicorn {UNICORN_RELEASE} is not as this model knows it: {what}. Install the wheel that"
        " pyproject.toml names, or start the model with :execute=N"
    )


def open_engine() -> Any:
    """A new engine.

    :raise EngineUnavailable: unicorn is missing, or of another release.
    """
    try:
        import unicorn as package
    except ImportError as error:
        raise EngineUnavailable(
            f"guest code needs unicorn {UNICORN_RELEASE} ({error}): pip install 'pytest-seves[model]', or"
            " start the model with :execute=N"
        ) from None
    unicorn: Any = package
    if unicorn.__version__ != UNICORN_RELEASE:
        raise EngineUnavailable(
            f"guest code needs unicorn {UNICORN_RELEASE}, here is {unicorn.__version__}: its hidden state may"
            " lie elsewhere. pip install 'pytest-seves[model]', or start the model with :execute=N"
        )
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_cpu_model(unicorn.x86_const.UC_CPU_X86_EPYC)
    return uc
