"""Exchanges that begin while the backward pass still runs: the same bits, and earlier."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from ranks import Rank, Threads
from torch import Tensor, nn

from kubestill.runtime.training import overlap
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.steps import AutogradStep
from kubestill.runtime.training.tree import Tree

LEAVES, ROWS = 8, 41


class Network(nn.Module):
    """With statistics of its own, a weight that is used twice and one that is not used at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.twice, self.last = nn.Linear(16, 16, bias=False), nn.Linear(16, 3)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(rows)))
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(hidden)))))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(ROWS, 8, generator=generator), torch.randn(ROWS, 3, generator=generator)


def train(network: nn.Module, threads: Threads | None, rank: int, world: int) -> dict[str, Tensor]:
    """Take three steps as one of the ranks, and return what they come to."""
    groups: Any = Rank(threads, rank) if threads else None
    step = AutogradStep(
        network,
        build_loss("mse"),
        optimizer="AdamW",
        optimizer_args={},
        clip=0.1,
    )
    shared = MicroBatches(step, network, leaves=LEAVES, seed=0, groups=groups)
    order = Order(
        rows=ROWS,
        batch_size=ROWS,
        seed=0,
        shuffle="none",
        window_rows=ROWS,
        rank=rank,
        world_size=world,
        virtual_workers=LEAVES,
    )
    losses: list[Tensor] = []
    for position in range(3):
        part, own = order.cut(torch.arange(ROWS), position)
        losses.append(shared(tuple(tensor[own] for tensor in batch()), 0.1, part))
    used = type(shared._sums)  # pyright: ignore[reportPrivateUsage]
    assert used is (overlap.Buckets if threads and overlap.BUCKET_BYTES < 1 << 20 else Tree)
    return {"losses": torch.stack(losses), **shared.state(), **network.state_dict()}


@pytest.mark.parametrize("bucket", [1, 600, 1 << 20], ids=["of one", "of some", "of all"])
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_buckets_change_no_bit(world: int, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BUCKET_BYTES", bucket)
    alone = train(Network(), None, 0, 1)
    threads, networks = Threads(LEAVES, world), [Network() for _ in range(world)]
    with ThreadPoolExecutor(world) as pool:
        ranks = pool.map(lambda rank: train(networks[rank], threads, rank, world), range(world))
        for found in ranks:
            assert found.keys() == alone.keys()
            for name, tensor in alone.items():
                assert torch.equal(tensor, found[name]), name


def test_the_first_exchange_begins_before_the_backward_pass_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlap, "BUCKET_BYTES", 1)
    exchanged, began, first_done = threading.Event(), threading.Event(), threading.Barrier(2)

    class Waits(torch.autograd.Function):
        """At the bottom of the network: its backward is the last."""

        @staticmethod
        def forward(ctx: Any, rows: Tensor) -> Tensor:
            return rows.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            if began.is_set():  # what the buckets are shows in the first step
                assert exchanged.wait(5)
            return gradients[0]

    class Bottom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.last(Waits.apply(self.first(rows)))

    class Notes(Rank):
        def all_reduce(self, tensor: Tensor, exchange: Any) -> None:
            super().all_reduce(tensor, exchange)
            if began.is_set():
                exchanged.set()

    threads, network = Threads(2, 2), Bottom()

    def work(rank: int) -> None:
        own = deepcopy(network)
        step = AutogradStep(own, build_loss("mse"), optimizer="SGD", optimizer_args={})
        groups: Any = Notes(threads, rank)
        shared = MicroBatches(step, own, leaves=2, seed=0, groups=groups)
        plan = {"rows": 8, "batch_size": 8, "seed": 0, "shuffle": "none", "window_rows": 8}
        order = Order(**plan, rank=rank, world_size=2, virtual_workers=2)
        for position in range(2):
            part, mine = order.cut(torch.arange(8), position)
            shared(tuple(tensor[:8][mine] for tensor in batch()), 0.1, part)
            first_done.wait(20)
            began.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert exchanged.is_set()


def test_an_exchange_that_fails_fails_the_step() -> None:
    class Gone(Rank):
        def all_reduce(self, tensor: Tensor, exchange: Any) -> None:
            raise RuntimeError("Connection closed by peer")

    network = Network()
    step = AutogradStep(network, build_loss("mse"), optimizer="SGD", optimizer_args={})
    groups: Any = Gone(Threads(2, 2), 0)
    shared = MicroBatches(step, network, leaves=2, seed=0, groups=groups)
    plan = {"rows": 8, "batch_size": 8, "seed": 0, "shuffle": "none", "window_rows": 8}
    part, own = Order(**plan, rank=0, world_size=2, virtual_workers=2).cut(torch.arange(8), 0)
    with pytest.raises(RuntimeError, match="Connection closed"):
        shared(tuple(tensor[:8][own] for tensor in batch()), 0.1, part)


def test_the_thread_has_ended_when_the_sums_are_gone() -> None:
    """Else a process that ends with its training run aborts, in one of torch's destructors."""
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    before, groups = {*threading.enumerate()}, Rank(Threads(2, 1), 0)
    buckets = overlap.Buckets(parameters, parameters, [[0], [1]], leaves=2, groups=groups)  # pyright: ignore
    (thread,) = {*threading.enumerate()} - before
    del buckets
    assert not thread.is_alive()
