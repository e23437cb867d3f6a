# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is to be, in the words of the field; an adapter turns it into a command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pytest_seves.errors import UsageError
from pytest_seves.spec.sev import Policy

from .steps import Gdb, Step

#: Ways to initialise a SEV-ES guest; None leaves the choice to the VMM.
INIT_PATHS = ("ES_INIT", "INIT2")
MAX_VCPUS = 4096
#: Ways to end a guest that has been observed.
ENDS = ("quit", "SIGTERM", "SIGKILL")
#: The kernel of the lab file, or else the one that the host runs.
HOST_KERNEL = "host"
#: The initramfs that reports, and powers off.
PROBE_INITRD = "probe"
#: The variables that come with the firmware of the lab file.
HOST_VARIABLES = "host"
#: The same; a firmware that has none is given with ``bios``.
OPTIONAL_VARIABLES = "optional"
#: Before the name of a file that was put on the host, where a bundle names it: its directory there is random.
PUT = "put:"
#: It is left to its deadline, for a person to look at.
NEVER = "never"


@dataclass(frozen=True)
class OwnerSession:
    """The guest owner's launch session, as files on the host: SEV API, LAUNCH_START.

    :param dh_cert: path of the base64-encoded Diffie-Hellman certificate.
    :param session: path of the base64-encoded session blob.
    """

    dh_cert: str
    session: str


@dataclass(frozen=True)
class GuestSpec:
    """A guest.

    :param vcpus: number of boot vCPUs.
    :param policy: SEV guest policy, None for a guest without memory encryption.
    :param memory_mib: RAM in MiB.
    :param firmware: path on the host; None takes the one of the lab file.
    :param firmware_via: ``bios`` or ``pflash``.
    :param variables: its variables, for ``pflash``: a path on the host, or :data:`HOST_VARIABLES` or
        :data:`OPTIONAL_VARIABLES` with the lab file's firmware. The VMM writes into a copy, thrown away.
    :param machine: machine type.
    :param machine_options: further ``-machine`` options as (name, value), in order.
    :param init_path: one of :data:`INIT_PATHS`, None for the VMM's own choice.
    :param cpu_model: guest CPU model.
    :param paused: start stopped (``-S``); the guest runs after it was asked about itself.
    :param session: the owner's session, None lets the firmware make its own keys.
    :param extra: arguments appended as they are.
    :param faults: names of circumstances (:mod:`pytest_seves.guest.faults`) the VMM is to meet.
    :param steps: what is done to the running guest (:mod:`pytest_seves.guest.steps`).
    :param paused_steps: what is done before it runs, when it was started paused.
    :param ends: how it is ended: one of :data:`ENDS`.
    :param kernel: a Linux kernel that the firmware boots: a path on the host, or :data:`HOST_KERNEL`.
    :param initrd: its initramfs: a path on the host, or :data:`PROBE_INITRD`, which is ours (guest/linux).
    :param append: its command line.
    :param kernel_hashes: hashes of these three are measured with the firmware, which needs a place for them.
    """

    vcpus: int = 1
    policy: int | None = int(Policy.NODBG | Policy.ES)
    memory_mib: int = 256
    firmware: str | None = None
    firmware_via: str = "bios"
    machine: str = "q35"
    machine_options: tuple[tuple[str, str], ...] = ()
    init_path: str | None = None
    cpu_model: str = "EPYC-v3"
    paused: bool = False
    session: OwnerSession | None = None
    extra: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    paused_steps: tuple[Step, ...] = ()
    ends: str = "quit"
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    kernel_hashes: bool = False
    variables: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UsageError(f"vcpus: wanted 1 to {MAX_VCPUS}, got {self.vcpus}")
        if self.policy is not None and not 0 <= self.policy < 1 << 32:
            raise UsageError(f"policy: wanted a 32-bit number or None, got {self.policy!r}")
        if self.init_path not in (None, *INIT_PATHS):
            raise UsageError(f"init_path: wanted one of {INIT_PATHS} or None, got {self.init_path!r}")
        if self.firmware_via not in ("bios", "pflash"):
            raise UsageError(f"firmware_via: wanted 'bios' or 'pflash', got {self.firmware_via!r}")
        if self.paused_steps and not self.paused:
            raise UsageError("paused_steps: wanted paused=True with them")
        if self.ends not in (*ENDS, NEVER):
            raise UsageError(f"ends: wanted one of {ENDS}, got {self.ends!r}")
        self._check_kernel()
        self._check_variables()

    def _check_kernel(self) -> None:
        if self.kernel is None and (self.initrd or self.append or self.kernel_hashes):
            raise UsageError("initrd, append, kernel_hashes: wanted kernel=... with them")
        for name, word in (("kernel", HOST_KERNEL), ("initrd", PROBE_INITRD)):
            given = getattr(self, name)
            if given not in (None, word) and not str(given).startswith(("/", PUT)):
                raise UsageError(f"{name}: wanted {word!r} or an absolute path on the host, got {given!r}")
        if self.kernel_hashes and self.policy is None:
            raise UsageError("kernel_hashes: wanted a policy with it: nothing is measured without one")

    def _check_variables(self) -> None:
        if self.variables is None:
            return
        if self.firmware_via != "pflash":
            raise UsageError("variables: wanted firmware_via='pflash' with them")
        words = (HOST_VARIABLES, OPTIONAL_VARIABLES)
        if self.variables in words and self.firmware is not None:
            raise UsageError(f"variables={self.variables!r}: wanted no other firmware, got {self.firmware}")
        if self.variables not in words and not self.variables.startswith(("/", PUT)):
            raise UsageError(
                f"variables: wanted one of {words} or an absolute path on the host, got {self.variables!r}"
            )

    @property
    def es(self) -> bool:
        """True for a SEV-ES guest: policy bit 2 (SEV API, guest policy)."""
        return self.policy is not None and bool(self.policy & Policy.ES)

    @property
    def debugged(self) -> bool:
        """True when a debugger attaches to the VMM's gdbstub."""
        return any(isinstance(step, Gdb) for step in (*self.paused_steps, *self.steps))

    @classmethod
    def of(cls, **options: Any) -> GuestSpec:
        """A spec from keyword arguments as tests write them.

        `machine` may be a dictionary of machine options, and sequences may be lists.

        :raise UsageError: an option that does not exist, or a value that no guest can have.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise UsageError(
                f"launch_guest: no such option {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )
        machine = options.get("machine")
        if isinstance(machine, dict):
            named = dict(machine)
            options["machine"] = named.pop("type", cls.machine)
            options["machine_options"] = tuple((str(k), str(v)) for k, v in named.items())
        for name in ("extra", "faults", "steps", "paused_steps"):
            if name in options:
                options[name] = tuple(options[name])
        return cls(**options)


def policy_name(policy: int | None) -> str:
    """A policy as people write it: ``ES+NODBG``; ``plain`` for none, ``SEV`` for no bit at all."""
    if policy is None:
        return "plain"
    bits = [name for name in ("ES", "NODBG", "NOKS", "NOSEND", "DOMAIN", "SEV") if policy & Policy[name]]
    if policy >> 16:
        bits.append(f"API{policy >> 16 & 0xFF}.{policy >> 24}")
    return "+".join(bits) or "0"


def mapped_memory(machine: str, mib: int) -> dict[str, Any]:
    """Options of a guest whose memory is a file that the VMM maps shared, as for devices in other processes.

    The model executes such a guest in that memory, and any other in a copy of it.
    """
    return {
        "memory_mib": mib,
        "machine": {"type": machine, "memory-backend": "ram"},
        "extra": ("-object", f"memory-backend-memfd,id=ram,size={mib}M,share=on"),
    }
