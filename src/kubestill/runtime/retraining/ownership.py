"""Find out whether the run that holds a window is still at work.

Where one process drives the run on this very machine, as `kubestill run` does, it can be looked up.
Of a run of Kubeflow its API knows. Where neither can say, the claim's lease decides. None has to be
right: whoever takes over changes the state, and the run that was thought dead is refused by it from
then on.
"""

from __future__ import annotations

import os
import socket

from kubestill.runtime.retraining.kubeflow_runs import describe_end, find_experiment, goes_on
from kubestill.runtime.retraining.state import Claim

DRIVER_VARIABLE = "KUBESTILL_DRIVER"
"""Environment variable: the id of the process that drives this run on this machine."""
_KUBEFLOW = "kubeflow"


def find_owner(run_id: str) -> str:
    """Name what drives this run: `<machine>/<process>/<its start>`, or `kubeflow/<experiment>`.

    Empty where it is unknown.
    """
    pid = os.environ.get(DRIVER_VARIABLE, "")
    if pid:
        started = _started(pid)
        return f"{_machine()}/{pid}/{started}" if started else ""
    experiment = find_experiment(run_id)
    return f"{_KUBEFLOW}/{experiment}" if experiment else ""


def find_end(claim: Claim) -> str:
    """Return how the run that holds a claim ended; empty if it has not, or that is unknown."""
    kind, _, experiment = claim.owner.rpartition("/")
    if kind not in ("", _KUBEFLOW):
        return ""
    return describe_end(claim.run_id, experiment)


def seems_alive(claim: Claim, *, now: float) -> bool:
    """Return whether the run may still be at work, as far as this machine can see.

    Args:
        claim: What it holds.
        now: Seconds since 1970.
    """
    here = _lives_here(claim)
    return now < claim.at + claim.lease_seconds if here is None else here


def is_alive(claim: Claim) -> bool:
    """Return whether a run is known to be at work: its process lives here, or Kubeflow says so."""
    kind, _, _ = claim.owner.rpartition("/")
    return bool(_lives_here(claim)) or (kind in ("", _KUBEFLOW) and goes_on(claim.run_id))


def _lives_here(claim: Claim) -> bool | None:
    """Return whether the process that drives a run is alive; None if it is not of this machine."""
    machine, _, process = claim.owner.rpartition("/")[0].rpartition("/")
    if not machine or machine != _machine():
        return None
    return _started(process) == claim.owner.rpartition("/")[2]


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
