"""One process a device: joined under `torchrun`, alone everywhere else."""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import itertools
import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kubestill.runtime.base.device import local_rank

_groups = itertools.count()


@contextmanager
def process_group() -> Generator[None, None, None]:
    """Join the processes that `torchrun` started, for the duration; do nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    store, rank, world_size = _rendezvous()
    # A process may train twice. Under the names of an earlier group stand the addresses at which
    # nobody listens any more, and a rank that comes first would take them.
    store = dist.PrefixStore(f"kubestill/{next(_groups)}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@cache
def _rendezvous() -> tuple[dist.Store, int, int]:
    """Return the store in which all ranks find each other, with this rank and how many there are.

    There is one for the life of the process: rank 0 may be the one that serves it.
    """
    return next(dist.rendezvous("env://"))


def average_(tensor: Tensor, world_size: int) -> Tensor:
    """Replace a tensor by its mean over all ranks."""
    if world_size > 1:
        dist.all_reduce(tensor)
        tensor.div_(world_size)
    return tensor


def share_buffers(network: nn.Module, world_size: int) -> None:
    """Give every rank the buffers of rank 0: one training run has one set of running statistics."""
    if world_size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
