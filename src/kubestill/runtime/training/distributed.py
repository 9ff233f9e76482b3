"""The processes of a training run as one group: those of `torchrun`, those of `processes`, or one.

`Together` is what each needs to find the others. Under `torchrun` the environment says so.
"""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import itertools
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kubestill.runtime.base.device import local_rank

_groups = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Together:
    """One process among those that this package started on this machine."""

    store: dist.Store
    """Where all of them find each other."""
    rank: int
    world: int
    timeout: float
    """Seconds that any of them waits for the others."""


def in_group() -> bool:
    """Return whether this process belongs to several, or is about to join them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or dist.is_initialized()


@contextmanager
def process_group(together: Together | None = None) -> Generator[None, None, None]:
    """Join the other processes for the duration; do nothing where there are none."""
    if dist.is_initialized() or (together is None and not in_group()):
        yield
        return
    options: dict[str, Any] = {}
    if together is not None:
        store, rank, world_size = together.store, together.rank, together.world
        options["timeout"] = timedelta(seconds=together.timeout)
    else:
        store, rank, world_size = _rendezvous()
        # A process may train twice. Under the names of an earlier group stand the addresses at
        # which nobody listens any more, and a rank that comes first would take them.
        store = dist.PrefixStore(f"kubestill/{next(_groups)}", store)
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def exchanges_within(seconds: float) -> Generator[None]:
    """Have exchanges between all processes fail after so many seconds, for the duration.

    Before it they wait for those that start later, and after it for what rank 0 writes.
    """
    if not dist.is_initialized():
        yield
        return
    group = cast(dist.ProcessGroup, dist.group.WORLD)
    cpu, kinds = torch.device("cpu"), group._device_types
    # Somebody else may have begun it, for GPUs alone.
    before = group._get_backend(cpu if cpu in kinds else kinds[0]).options._timeout
    _limit(timedelta(seconds=seconds))
    try:
        yield
    finally:
        _limit(before)


def _limit(timeout: timedelta) -> None:
    # A group of its own would have this timeout from the start, but what restores and saves states
    # knows one group.
    dist.distributed_c10d._set_pg_timeout(timeout)  # pyright: ignore[reportPrivateUsage]


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
