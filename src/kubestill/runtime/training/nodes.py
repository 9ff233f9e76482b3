"""What a pod of a TrainJob knows of the others, and how their processes meet.

Kubeflow Trainer's torch plugin tells each pod how many there are and where the first is found, by
the variables that torchrun reads (`PET_NNODES`, ...). Each pod runs the command of the step that
made the TrainJob; `TRAINJOB_VARIABLE` tells it that it is one of them.
"""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import TCPStore

from kubestill.errors import InvalidInput, Problem
from kubestill.supervision import TRAINJOB_VARIABLE

if TYPE_CHECKING:
    from kubestill.runtime.training.settings import TrainingSettings

RESERVED = (
    "PET_NNODES",
    "PET_NPROC_PER_NODE",
    "PET_NODE_RANK",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
)
"""What the plugin sets; it refuses a TrainJob that sets any of them."""

_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Node:
    """One pod among those that share a training run."""

    rank: int
    count: int
    """How many pods there are."""
    processes: int
    """How many processes each of them runs."""
    host: str
    """Where the first one is found."""
    port: int

    @classmethod
    def here(cls) -> Node | None:
        """Return this pod; None where this process belongs to no TrainJob.

        Raises:
            InvalidInput: The TrainJob's runtime is not one for torch.
        """
        if not (name := os.environ.get(TRAINJOB_VARIABLE)):
            return None
        count, processes, rank, host, port = (os.environ.get(one, "") for one in RESERVED)
        numbers = (count, processes, rank, port)
        if not host or not all(number.isdigit() for number in numbers):
            remedy = (
                f"the pods of TrainJob {name} lack {', '.join(RESERVED)}: name a runtime whose "
                "mlPolicy is torch, such as torch-distributed"
            )
            raise InvalidInput([Problem("settings.trainjob.runtime", "", remedy)])
        return cls(
            rank=int(rank), count=int(count), processes=int(processes), host=host, port=int(port)
        )


def leads_pods(settings: TrainingSettings) -> bool:
    """Return whether this process has pods train, rather than being one of them."""
    return settings.nodes > 1 and TRAINJOB_VARIABLE not in os.environ


def meet(node: Node, timeout: float) -> TCPStore:
    """Return the store in which the processes of all pods find each other.

    The first pod's process serves it, and it ends with that process. A pod that was started again
    may find the store of the group that it is missed in: it waits until that group has ended.

    Raises:
        ConnectionError: The first pod does not start within `timeout` seconds, or does not end.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            store = TCPStore(
                node.host,
                node.port,
                is_master=node.rank == 0,
                wait_for_workers=False,
                timeout=timedelta(seconds=max(until - time.monotonic(), 1.0)),
            )
            if store.add(f"met/{node.rank}", 1) == 1:
                return store
        except RuntimeError as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"rank 0 at {node.host}:{node.port} is not there: {error}"
                ) from error
        if time.monotonic() > until:
            raise ConnectionError(f"rank 0 at {node.host}:{node.port} does not miss this pod")
        time.sleep(_PAUSE_SECONDS)
