"""What it costs to share a training run between processes, with the same bits for any number.

Two processes on two cores, one thread each, over gloo: a step on V = 2 micro-batches against one of
torch's DistributedDataParallel with the same network, loss, optimizer (fused) and rows. Both live
in the same pair of processes, which keep freed memory as a training run does, and take turns there.
Then one process: V = 8 micro-batches against the batch as a whole.

    python -m bench.bench_distributed [--rounds 7] [--steps 60] [--network NAME]
    python -m bench.bench_distributed --shards

With `--shards`: what two processes hold of an MLP that they share out, what its step, a save and a
restore by three processes cost, against `torch.distributed.checkpoint` with the same tensors.

Figures are written after each network. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.harness import Turns, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.memory import keep_freed_memory
from kubestill.runtime.checkpoints import (
    Checkpointer,
    CheckpointSettings,
    TrainingState,
    resolve_place,
)
from kubestill.runtime.checkpoints.commits import LedgerCell
from kubestill.runtime.checkpoints.restore import Wanted, read_state
from kubestill.runtime.models.networks import mlp as mlp_of
from kubestill.runtime.training.batches import Order
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.settings import parse_settings
from kubestill.runtime.training.shards import ShardedStep, Shards, share_out
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
    parser.add_argument("--shards", action="store_true", help="state that is shared out, alone")
    told = parser.parse_args()
    if told.shards:
        write("distributed", shards(told.rounds), keep=True)
        return
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
    keep_freed_memory()
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
    keep_freed_memory()
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


WIDTH, DEPTH = 1024, 8


def shards(rounds: int) -> list[Measure]:
    """Measure state that is shared out, one pair of processes a way to keep it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("whole", "shared"):
            started = (way, folder, rounds)
            mp.spawn(learn, args=started, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
            ranks = [torch.load(f"{folder}/{way}-{rank}", weights_only=False) for rank in (0, 1)]
            found[way] = {name: max(one[name] for one in ranks) for name in ranks[0]}
        mp.spawn(restore, args=(folder, rounds), nprocs=3)  # pyright: ignore[reportPrivateImportUsage]
        turns: Turns = torch.load(f"{folder}/turns", weights_only=False)
    whole, shared = found["whole"], found["shared"]
    title = f"MLP of {DEPTH} x {WIDTH} in shards"
    peer = "every process keeps everything"

    def measure(name: str, value: float, unit: str, peer: str) -> Measure:
        return Measure(name=f"{title}: {name}", value=value, unit=unit, peer=peer)

    save = "torch.distributed.checkpoint.save, which also writes"
    return [
        measure("state of training, peak of a process", shared["peak"] / 1e6, "MB", ""),
        measure("the same over everything", shared["peak"] / whole["peak"], "times", peer),
        measure("step at W = 2", shared["step"] / whole["step"], "times", peer),
        measure("stall of a save", 1e3 * shared["stall"], "ms", ""),
        measure("stall of a save over a save", shared["stall"] / shared["dcp"], "times", save),
        measure("restore of 2 shards at W = 3", 1e3 * turns.median("ours"), "ms", ""),
        measure(
            "restore of 2 shards at W = 3 over a load",
            turns.ratio("ours", "peer"),
            "times",
            "torch.distributed.checkpoint.load, which checks no sums",
        ),
    ]


def learn(rank: int, way: str, folder: str, rounds: int) -> None:
    """Be one of two processes that train and save; leave what it took."""
    torch.set_num_threads(1)
    keep_freed_memory()
    meet = f"file://{folder}/meet-{way}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.manual_seed(0)
    network = mlp_of(784, CLASSES, hidden=[WIDTH] * DEPTH)
    sharded = {"shard": "auto"} if way == "shared" else {}
    settings = parse_settings({"batch_size": BATCH}, {"virtual_workers": 2, **sharded})
    part, own = order(2, rank, 2).cut(torch.arange(BATCH), 0)
    rows = tuple(tensor[own] for tensor in batch())
    before = resident() - sum(p.nbytes for p in network.parameters())
    shared = None
    if sharded:
        shared = Shards(network, "auto", rank=rank, world=2, timeout=60.0)
        machine = Machine(device=torch.device("cpu"), precision="float32")
        step: Any = ShardedStep(network, build_loss(LOSS), settings, machine, shared)
    else:
        plain = AutogradStep(network, build_loss(LOSS), optimizer="AdamW", optimizer_args={})
        groups = Groups(2, rank=rank, world=2, timeout=60.0)
        step = MicroBatches(plain, network, leaves=2, seed=0, groups=groups)
    Path("/proc/self/clear_refs").write_text("5")
    step(rows, 1e-3, part)
    seconds = sorted(clock(lambda: step(rows, 1e-3, part))() for _ in range(rounds))
    found = {"peak": resident("VmHWM") - before, "step": seconds[rounds // 2]}
    if shared is not None:
        held = {
            f"model/{name}": tensor.data
            for name, tensor, owner in zip(
                shared.names, shared.parameters, shared.owners, strict=True
            )
            if owner == rank
        } | {f"optimizer/{name}": tensor for name, tensor in step.state().items()}
        found |= save(held, rank, folder, rounds)
    torch.save(found, f"{folder}/{way}-{rank}")
    dist.destroy_process_group()


def save(held: dict[str, Tensor], rank: int, folder: str, rounds: int) -> dict[str, float]:
    """Save a share of the state in both ways; return how long training stands still."""
    place = resolve_place(f"{folder}/store", "bench", "f" * 32, "", announce=lambda line: None)
    stalls: list[float] = []
    peers: list[float] = []
    opened = Checkpointer.open(
        place, CheckpointSettings(), numerics={}, sharded=True, announce=lambda line: None
    )
    with opened as checkpointer:
        checkpointer.restore()
        for number in range(1, rounds + 2):
            view, about = TrainingState(held), {"step": number, "epoch": 0.0, "examples": 0}
            dist.barrier()
            stalls.append(
                clock(partial(checkpointer.save, view, kind="milestone", **about))()  # pyright: ignore
            )
            checkpointer.flush()
            dist.barrier()
            peers.append(
                clock(
                    lambda number=number: dcp.save(held, checkpoint_id=f"{folder}/dcp/{number}")
                )()
            )
    # The first of each makes room.
    return {"stall": sorted(stalls[1:])[rounds // 2], "dcp": sorted(peers[1:])[rounds // 2]}


def restore(rank: int, folder: str, rounds: int) -> None:
    """Be one of three processes that read what two wrote, in turn by both ways."""
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet-restore"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=3)
    network = mlp_of(784, CLASSES, hidden=[WIDTH] * DEPTH)
    named = dict(network.named_parameters())
    owners = share_out([p.nbytes for p in named.values()], 3)
    own = {name for name, owner in zip(named, owners, strict=True) if owner == rank}
    place = resolve_place(f"{folder}/store", "bench", "f" * 32, "", announce=lambda line: None)
    entry = LedgerCell(place).read()[0].newest_first[0]
    wanted = Wanted(
        names=frozenset(f"model/{name}" for name in own),
        takes=lambda name: name.removeprefix("model/") in own or name.split("/")[1] in own,
    )
    read = partial(
        read_state, place.store, entry, rank=rank, world=3, proof="crc32c", wanted=wanted
    )
    peer = {name: torch.zeros_like(tensor) for name, tensor in read().state.tensors.items()}

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> None:
            work()
            dist.barrier()

        return lambda: (dist.barrier(), clock(run)())[1]

    theirs = timed(lambda: dcp.load(peer, checkpoint_id=f"{folder}/dcp/{rounds + 1}"))
    turns = take_turns({"ours": timed(read), "peer": theirs}, rounds)
    if rank == 0:
        torch.save(turns, f"{folder}/turns")
    dist.destroy_process_group()


def resident(what: str = "VmRSS") -> int:
    """Return the bytes of this process that are in memory, or were at most."""
    (found,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found)


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
