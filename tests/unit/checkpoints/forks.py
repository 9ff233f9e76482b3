"""Real processes that meet as ranks, forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["kubestill.runtime.checkpoints.checkpointer", "torch.distributed"])


def run_ranks(work: Callable[..., None], given: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Have one process for each tuple of arguments do its work; return their exit codes."""
    processes = [FORKS.Process(target=work, args=one, daemon=True) for one in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    # One may still wait for another, which failed.
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
