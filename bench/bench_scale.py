"""A step on 1 to 512 devices: a model of its time, checked where it can be, and what it foretells.

The model of a step that W processes share, each with its part of V micro-batches:

    leaves x leaf + additions + update + exchange(bytes, W)

Leaf, addition, update and the two constants of an exchange (latency, bandwidth) are measured here:
the first three in one process, the constants by two that do nothing else. Then whole steps of 1, 2
and 4 processes are measured, and the model held against them. A machine has C cores: W processes
above C share them, and the model multiplies what a process computes by W / C. The fastest of a few
rounds counts, so that whoever else uses the machine disturbs it less.

What it foretells of 8, 64 and 512 devices rests on published bandwidths (`LINKS`), not on a
measurement. An exchange is counted level by level (a vector for each level of the tree), in halves
along the tree, as here, and around rings, as NCCL does; and at best, where as much of it as
fits runs beside the backward pass of the last micro-batch.

    python -m bench.bench_scale [--rounds 8] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench.bench_distributed import BATCH, NETWORKS, batch, order, plain_step, shared_step
from bench.results import Measure, write
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.tree import Groups, Tree

LEAVES = 4
NAMES = ("MLP 784-800-800-10", "transformer")
Way = Literal["levels", "halves", "ring", "hidden"]
WAYS: dict[Way, str] = {
    "levels": "level by level",
    "halves": "in halves along the tree",
    "ring": "around rings",
    "hidden": "in halves, beside the backward pass",
}


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins two devices, for each of them and each direction."""

    seconds: float
    """Latency of one message."""
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of so many devices."""

    name: str
    devices: int
    """In a node."""
    inside: Link
    between: Link

    def link(self, distance: int) -> Link:
        """Return what joins a device and the one so many ranks away."""
        return self.inside if distance < self.devices else self.between


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a step consists of, in seconds and bytes."""

    leaf: float
    """Forward and backward of one micro-batch."""
    add: float
    """Two vectors of all that is summed."""
    update: float
    size: float
    """Bytes of one such vector."""


LINKS = {
    # NVLink 4: 450 GB/s each way. One 400 Gb/s InfiniBand port a GPU.
    "H100, 400 Gb/s": Cluster(
        name="nodes of 8 H100, 400 Gb/s for each GPU",
        devices=8,
        inside=Link(seconds=5e-6, bytes_per_second=450e9),
        between=Link(seconds=10e-6, bytes_per_second=50e9),
    ),
    # The same nodes where a cloud gives all 8 GPUs 100 Gb/s together.
    "H100, 100 Gb/s": Cluster(
        name="nodes of 8 H100, 100 Gb/s for all 8",
        devices=8,
        inside=Link(seconds=5e-6, bytes_per_second=450e9),
        between=Link(seconds=30e-6, bytes_per_second=12.5e9 / 8),
    ),
}
BACKWARD = 2 / 3
"""Of a micro-batch's arithmetic."""
FLOPS = 0.4 * 989e12
"""Of an H100 in bf16, at 40% of what it is sold for."""
HBM = 0.7 * 3.35e12
"""Bytes a second of its memory, at 70%."""


def exchange(size: float, world: int, cluster: Cluster, way: Way) -> float:
    """Return the seconds that a sum over `world` devices takes, 2, 4, 8, ... of them."""
    if world == 1:
        return 0.0
    if way == "ring":
        # As many rings as a node has links to others, each with its share.
        link, rate = cluster.inside, cluster.inside.bytes_per_second
        if world > cluster.devices:
            link = cluster.between
            rate = min(rate, cluster.devices * link.bytes_per_second)
        steps = 2 * (world - 1)
        return steps * link.seconds + steps / world * size / rate
    seconds, share = 0.0, 1.0
    for level in range(int(math.log2(world))):
        link = cluster.link(1 << level)
        if way == "halves":
            share /= 2
            seconds += 2 * (link.seconds + share * size / link.bytes_per_second)
        else:
            # An all-reduce of two sends half a vector twice.
            seconds += 2 * link.seconds + size / link.bytes_per_second
    return seconds


def step(parts: Parts, leaves: int, world: int, cluster: Cluster, way: Way, cores: float) -> float:
    """Return the seconds that a step takes, by the model."""
    own = leaves // world
    alone = own * parts.leaf + (own - 1) * parts.add + parts.update
    crowd = max(1.0, world / cores)
    if way == "hidden":
        rest = exchange(parts.size, world, cluster, "halves") - BACKWARD * parts.leaf
        return crowd * (alone + max(0.0, rest))
    return crowd * (alone + exchange(parts.size, world, cluster, way))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    told = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    measured: dict[int, dict[str, float]] = {1: steps(0, 1, told.rounds, told.steps)}
    parts = {name: pieces(name, told.rounds * told.steps) for name in NAMES}
    link, measured[2] = run(2, links_and_steps, told.rounds, told.steps)
    measured[4] = run(4, steps, told.rounds, told.steps)
    here = Cluster(name="here", devices=1 << 30, inside=Link(**link), between=Link(**link))
    latency, bandwidth = 1e6 * link["seconds"], link["bytes_per_second"] / 1e9
    between = "gloo, two processes"
    found = [
        Measure(name=f"{between}: latency", value=latency, unit="µs", peer=""),
        Measure(name=f"{between}: bandwidth each way", value=bandwidth, unit="GB/s", peer=""),
    ]
    for name in NAMES:
        for world in measured:
            seconds = measured[world][name]
            model = step(parts[name], LEAVES, world, here, "halves", cores)
            where = f"{name}, V = 4, W = {world}"
            peer = f"measured, {cores} cores"
            found += [
                Measure(name=f"{where}: step", value=1e3 * seconds, unit="ms", peer="fastest"),
                Measure(
                    name=f"{where}: the model over that",
                    value=model / seconds,
                    unit="times",
                    peer=peer,
                ),
            ]
    write("scale", [*found, *foretold()])


def foretold() -> list[Measure]:
    """Return what the model says of a transformer of a billion parameters on GPUs."""
    parameters, tokens = 1e9, 16_384
    # Gradients are summed in float32; AdamW reads and writes weights, moments and gradient once.
    size = 4 * parameters
    parts = Parts(
        leaf=6 * parameters * tokens / FLOPS, add=3 * size / HBM, update=7 * size / HBM, size=size
    )
    found: list[Measure] = []
    for cluster in LINKS.values():
        for world in (8, 64, 512):
            for way, words in WAYS.items():
                one = step(parts, 1, 1, cluster, way, math.inf)
                seconds = step(parts, world, world, cluster, way, math.inf)
                found.append(
                    Measure(
                        name=f"foretold, {cluster.name}: W = V = {world}, {words}",
                        value=100 * one / seconds,
                        unit="%",
                        peer="of so many times one device",
                    )
                )
    return found


def run(world: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Let so many processes work, one thread each; returns what rank 0 says."""
    with tempfile.TemporaryDirectory() as folder:
        spawned = (world, folder, work, arguments)
        mp.spawn(_begin, args=spawned, nprocs=world)  # pyright: ignore[reportPrivateImportUsage]
        with open(f"{folder}/said") as file:
            return json.load(file)


def _begin(
    rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    said = work(rank, world, *arguments)
    if rank == 0:
        with open(f"{folder}/said", "w") as file:
            json.dump(said, file)
    dist.destroy_process_group()


def links_and_steps(
    rank: int, world: int, rounds: int, count: int
) -> tuple[dict[str, float], dict[str, float]]:
    return links(rounds), steps(rank, world, rounds, count)


def links(rounds: int) -> dict[str, float]:
    """Measure an all-reduce of two, of few numbers and of many."""
    taken: dict[int, float] = {}
    for count in (16, 1 << 20):
        vector, seconds = torch.zeros(count), list[float]()
        for _ in range(4 * rounds):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(vector)
            seconds.append(time.perf_counter() - started)
        taken[count] = min(seconds)
    small, large = taken[16], taken[1 << 20]
    return asdict(Link(seconds=small / 2, bytes_per_second=4 * (1 << 20) / (large - small)))


def steps(rank: int, world: int, rounds: int, count: int) -> dict[str, float]:
    """Measure whole steps of every network, the fastest of so many rounds."""
    groups = Groups(LEAVES, rank=rank, world=world, timeout=60.0) if world > 1 else None
    part, own = order(LEAVES, rank, world).cut(torch.arange(BATCH), 0)
    rows, found = tuple(tensor[own] for tensor in batch()), dict[str, float]()

    def timed(ours: MicroBatches) -> float:
        if world > 1:
            dist.barrier()
        started = time.perf_counter()
        for _ in range(count):
            ours(rows, 1e-3, part)
        if world > 1:
            dist.barrier()
        return (time.perf_counter() - started) / count

    for name in NAMES:
        ours = shared_step(NETWORKS[name](), LEAVES, groups)
        timed(ours)
        found[name] = min(timed(ours) for _ in range(rounds))
    return found


def pieces(name: str, count: int) -> Parts:
    """Measure what a step consists of, the fastest of each."""
    network = NETWORKS[name]()
    single = plain_step(deepcopy(network))
    rows = tuple(tensor[: BATCH // LEAVES] for tensor in batch())
    _, gradients = single.gradient(rows)
    tree = Tree(gradients, leaves=2)

    def add() -> None:
        tree.add(0, gradients)
        tree.add(1, gradients)
        tree.total()

    def timed(work: Callable[[], object]) -> float:
        seconds = list[float]()
        for _ in range(count):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return Parts(
        leaf=timed(lambda: single.gradient(rows)),
        add=timed(add) / 2,
        update=timed(lambda: single.update([one.clone() for one in gradients], 1e-3)),
        size=sum(4.0 * one.numel() for one in gradients),
    )


if __name__ == "__main__":
    main()
