"""What it costs to share a training run between processes, with the same bits for any number.

Two processes on two cores, one thread each, over gloo: a step on V = 2 micro-batches against one of
torch's DistributedDataParallel with the same network, loss, optimizer (fused) and rows. Both live
in the same pair of processes and take turns there. Then one process: V = 8 micro-batches against
the batch as a whole.

    python -m bench.bench_distributed [--rounds 7] [--steps 60] [--network NAME]

Figures are written after each network. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.harness import Turns, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.steps import AutogradStep, FusedStep, SplitStep, why_not_fusible
from kubestill.runtime.training.tree import Groups

BATCH, CLASSES = 512, 10
LOSS = "cross_entropy"


def mlp(dropout: float) -> nn.Module:
    hidden = [nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU()]
    last = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*hidden, *last, nn.Linear(800, CLASSES))


def conv() -> nn.Module:
    body = [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    pooled = [nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*body, *pooled, nn.Flatten(), nn.Linear(800, CLASSES))


class Transformer(nn.Module):
    """Attention between the 28 lines of an image, in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(64, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.layers(self.embed(rows.view(-1, 28, 28))).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-800-800-10": lambda: mlp(0.0),
    "the same with dropout": lambda: mlp(0.5),
    "convolutions, batch norm": conv,
    "transformer": Transformer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--network", choices=NETWORKS, help="only this one")
    told = parser.parse_args()
    for name in [told.network] if told.network else NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (name, folder, told.rounds, told.steps)
            mp.spawn(two, args=arguments, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
            shared: Turns = torch.load(f"{folder}/turns", weights_only=False)
        alone = one(name, told.rounds, told.steps)
        measures = [
            Measure(
                name=f"{name}: step at W = 2 over DistributedDataParallel",
                value=shared.ratio("ours", "peer"),
                bar=1.05,
                at_least=False,
                unit="times",
                peer="torch DistributedDataParallel, gloo",
            ),
            Measure(
                name=f"{name}: step at W = 2, V = 2 over W = 1, V = 2",
                value=shared.median("ours") / alone.median("V = 2"),
                unit="times",
                peer="one process",
            ),
            Measure(
                name=f"{name}: step of V = 8 over V = 1, one process",
                value=alone.ratio("V = 8", "V = 1"),
                unit="times",
                peer="the batch as a whole",
            ),
            Measure(
                name=f"{name}: step at W = 2",
                value=1e3 * shared.median("ours") / told.steps,
                unit="ms",
                peer="",
            ),
        ]
        write("distributed", measures, keep=True)


def two(rank: int, name: str, folder: str, rounds: int, steps: int) -> None:
    """Be one of two processes that take turns with both rivals."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = NETWORKS[name]()
    groups = Groups(2, rank=rank, world=2, timeout=60.0)
    ours = shared_step(deepcopy(network), 2, groups)
    part, own = order(2, rank, 2).cut(torch.arange(BATCH), 0)
    rows = tuple(tensor[own] for tensor in batch())
    wrapped = DistributedDataParallel(deepcopy(network))
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3, fused=True)

    def peer() -> None:
        features, labels = rows
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(wrapped(features), labels).backward()
        optimizer.step()

    def many(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> None:
            for _ in range(steps):
                work()
            dist.barrier()

        def timed() -> float:
            dist.barrier()
            return clock(run)()

        return timed

    turns = take_turns({"ours": many(lambda: ours(rows, 1e-3, part)), "peer": many(peer)}, rounds)
    if rank == 0:
        torch.save(turns, f"{folder}/turns")
    dist.destroy_process_group()


def one(name: str, rounds: int, steps: int) -> Turns:
    """Let one process take turns with a whole batch and with one cut into 2 and 8."""
    torch.set_num_threads(1)
    network, rows = NETWORKS[name](), batch()
    whole = plain_step(deepcopy(network))

    def many(work: Callable[[], Tensor]) -> Callable[[], float]:
        return clock(lambda: [work() for _ in range(steps)])

    rivals = {"V = 1": many(lambda: whole(rows, 1e-3))}
    for leaves in (2, 8):
        step = shared_step(deepcopy(network), leaves)
        part, _ = order(leaves).cut(torch.arange(BATCH), 0)
        rivals[f"V = {leaves}"] = many(lambda step=step, part=part: step(rows, 1e-3, part))
    return take_turns(rivals, rounds)


def plain_step(network: nn.Module) -> SplitStep:
    options: dict[str, Any] = {"optimizer": "AdamW", "optimizer_args": {}}
    if not why_not_fusible(network, optimizer="AdamW", precision="float32"):
        assert isinstance(network, nn.Sequential)
        return FusedStep(network, build_loss(LOSS), **options)
    return AutogradStep(network, build_loss(LOSS), **options)


def shared_step(network: nn.Module, leaves: int, groups: Groups | None = None) -> MicroBatches:
    step = plain_step(network)
    return MicroBatches(step, network, leaves=leaves, seed=0, groups=groups)


def order(leaves: int, rank: int = 0, world: int = 1) -> Order:
    return Order(
        rows=BATCH,
        batch_size=BATCH,
        seed=0,
        shuffle="none",
        window_rows=BATCH,
        rank=rank,
        world_size=world,
        virtual_workers=leaves,
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return torch.randn(BATCH, 784, generator=generator), labels


if __name__ == "__main__":
    main()
