"""Whether the run that holds a window is still alive.

Where one process drives the run on this very machine, as `kubestill run` does, it can be looked up.
Anywhere else the claim's lease decides. Neither has to be right: whoever takes over changes the
state, and the run that was thought dead is refused by it from then on.
"""

from __future__ import annotations

import os
import socket

from kubestill.runtime.registry.state import Claim

__all__ = ["DRIVER_VARIABLE", "find_driver", "seems_alive"]

DRIVER_VARIABLE = "KUBESTILL_DRIVER"
"""Environment variable: the id of the process that drives this run on this machine."""


def find_driver() -> str:
    """Name the process that drives this run; empty where nobody said."""
    pid = os.environ.get(DRIVER_VARIABLE, "")
    started = _started(pid)
    return f"{_machine()}/{pid}/{started}" if started else ""


def seems_alive(claim: Claim, *, now: float) -> bool:
    """Tell whether the run may still be at work.

    Args:
        claim: What it holds.
        now: Seconds since 1970.
    """
    machine, _, process = claim.owner.rpartition("/")[0].rpartition("/")
    if machine == _machine():
        return _started(process) == claim.owner.rpartition("/")[2]
    return now < claim.at + claim.lease_seconds


def _machine() -> str:
    """Name this machine since its last start, and the space of process ids within it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{socket.gethostname()}:{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: str) -> str:
    """When a process was started, in the kernel's ticks; empty where there is none."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
