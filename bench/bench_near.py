"""What a node's own disk before the bucket saves: until a state is safe, and until it is back.

The state is a model of 10 million float32 parameters with Adam's two moments, 120 MB. The bucket
takes and gives so many MB a second and is else this process's memory; the disk is the folder. What
a kill costs is half of the time between two states, at the default pace, until one is safe, and
until it is read back.

Then two processes on two nodes, each with a disk of its own, over gloo on this machine: they
restore that state, once whole and once shared out between them, from their disks, from one disk
where the other is lost, and from the bucket, which gives each of them so many MB a second.

    python -m bench.bench_near [--rounds 5] [--megabytes 50] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from bench import savers
from bench.harness import Clocked, Turns, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.ledger import CheckpointKind
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.checkpoints.restore import Wanted
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.stores.base import Content, Entry
from kubestill.runtime.stores.local import LocalStore
from kubestill.runtime.stores.memory import MemoryStore

DEFAULTS = CheckpointSettings()


class Bucket(MemoryStore):
    """A store behind a network."""

    def __init__(self, bytes_per_second: float):
        self._rate = bytes_per_second
        super().__init__(uuid.uuid4().hex, "bench/bench")

    def put_parts(self, key: str, parts: Sequence[Content]) -> Entry:
        until = time.monotonic() + sum(len(part) for part in parts) / self._rate
        entry = super().put_parts(key, parts)
        time.sleep(max(0.0, until - time.monotonic()))
        return entry

    def download(self, key: str, path: str) -> None:
        started = time.monotonic()
        super().download(key, path)
        size = len(self.get(key, most=None))
        time.sleep(max(0.0, started + size / self._rate - time.monotonic()))


class SharedBucket(LocalStore):
    """A folder that several processes read as they would a bucket, each at its own rate."""

    def __init__(self, root: str, bytes_per_second: float):
        self._rate = bytes_per_second
        super().__init__(root)

    def local_path(self, key: str) -> str | None:
        return None

    def download(self, key: str, path: str) -> None:
        started = time.monotonic()
        super().download(key, path)
        time.sleep(max(0.0, started + os.path.getsize(path) / self._rate - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=50.0, help="a second, of the bucket")
    parser.add_argument("--folder", help="the node's own disk; default: the temporary folder")
    told = parser.parse_args()
    torch.set_num_threads(1)
    model, optimizer = savers.build(10, 1000)
    live = savers.state_of(model, optimizer)
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        settings = {"without": settings_of(""), "with": settings_of(folder)}
        places = {name: place_in(Bucket(1e6 * told.megabytes)) for name in settings}
        opened = {name: open_at(places[name], settings[name]) for name in settings}
        rivals = {name: saving(one, live) for name, one in opened.items()}
        stalls = take_turns({"bare copy": savers.bare_copy(live), **rivals}, told.rounds)
        bucket, disk = opened["without"].report(), opened["with"].report().near
        for one in opened.values():
            one.close()
        reads = {name: reading(places[name], settings[name]) for name in settings}
        back = take_turns(reads, told.rounds)
    assert disk
    found = measures(stalls, back, bucket.seconds_behind, disk.seconds_behind)
    for way in ("whole", "shared out"):
        with tempfile.TemporaryDirectory(dir=told.folder) as folder:
            given = (way, folder, told.megabytes, told.rounds)
            mp.spawn(be_node, args=given, nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
            found += of_nodes(way, torch.load(f"{folder}/turns", weights_only=False))
    write("near", found)


def of_nodes(way: str, turns: Turns) -> list[Measure]:
    title, peer = f"120 MB {way}, two nodes", "from the bucket"
    names = {"disks": "both disks", "other": "one disk, the other lost", "bucket": "the bucket"}
    found = [
        Measure(name=f"{title}: restored from {told}", value=turns.median(name), unit="s", peer="")
        for name, told in names.items()
    ]
    ratio = turns.ratio("other", "bucket")
    name = f"{title}: from one disk, over that"
    return [*found, Measure(name=name, value=ratio, bar=1, at_least=False, unit="times", peer=peer)]


def be_node(rank: int, way: str, folder: str, megabytes: float, rounds: int) -> None:
    """Be one of two nodes that save a state, near and in the bucket, and restore it in turn."""
    os.environ["LOCAL_RANK"] = "0"
    if rank:
        sys.stdout = None  # one of them tells
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    live = savers.state_of(*savers.build(10, 1000))
    sharded = way != "whole"
    wanted = None
    if sharded:
        # Of ten layers, with their moments, each keeps five.
        live = {name: one for i, (name, one) in enumerate(live.items()) if i % 2 == rank}
        wanted = Wanted(names=frozenset(live), takes=live.__contains__)
    store = SharedBucket(f"{folder}/bucket", 1e6 * megabytes)
    place = Place(store=store, experiment="bench", fingerprint="bench", owner="bench")

    def opened(near: str) -> Checkpointer:
        return Checkpointer.open(
            place,
            settings_of(near),
            numerics={},
            replicated=True,
            sharded=sharded,
            announce=lambda _: None,
        )

    disk = f"{folder}/disk-{rank}"
    with opened(disk) as running:
        running.restore(wanted)
        saved: tuple[tuple[int, CheckpointKind], ...] = ((1, "milestone"), (2, "recovery"))
        for step, kind in saved:
            while not running.recovery_due():
                pass
            view = TrainingState(live, {"step": step})
            running.save(view, kind=kind, step=step, epoch=0, examples=0)
            running.flush()
            dist.barrier()

    def reading(near: str, step: int) -> Clocked:
        def read() -> float:
            with opened(near) as after:
                dist.barrier()
                started = time.perf_counter()
                state = after.restore(wanted)
                dist.barrier()
                taken = time.perf_counter() - started
            assert state
            assert state.meta["step"] == step
            return taken

        return read

    reads = {
        "disks": reading(disk, 2),
        "other": reading(disk if rank == 0 else f"{folder}/new", 2),
        "bucket": reading("", 1),
    }
    turns = take_turns(reads, rounds)
    if rank == 0:
        torch.save(turns, f"{folder}/turns")
    dist.destroy_process_group()


def measures(stalls: Turns, back: Turns, bucket: float | None, disk: float | None) -> list[Measure]:
    assert bucket
    assert disk
    state, peer = "120 MB", "the bucket alone"
    lost = {
        "with": DEFAULTS.near_seconds / 2 + disk + back.median("with"),
        "without": DEFAULTS.recovery_seconds / 2 + bucket + back.median("without"),
    }

    def of(name: str, value: float, unit: str, peer: str) -> Measure:
        return Measure(name=f"{state}: {name}", value=value, unit=unit, peer=peer)

    return [
        of("blocking of a save on the disk", stalls.median("with"), "s", ""),
        of("the same in the bucket", stalls.median("without"), "s", ""),
        of("blocking over a bare copy", stalls.ratio("with", "bare copy"), "times", "bare copy"),
        of("until it is safe on the disk", disk, "s", ""),
        of("until it is safe in the bucket", bucket, "s", ""),
        of("reading it back from the disk", back.median("with"), "s", ""),
        of("reading it back from the bucket", back.median("without"), "s", ""),
        of("what a kill costs on average, by default", lost["with"], "s", ""),
        of("the same without", lost["without"], "s", ""),
        Measure(
            name=f"{state}: what a kill costs, over that without",
            value=lost["with"] / lost["without"],
            bar=0.25,
            at_least=False,
            unit="times",
            peer=peer,
        ),
    ]


def settings_of(near: str) -> CheckpointSettings:
    seconds = 3600 if near else 0
    return CheckpointSettings(
        near=near, near_seconds=1e-9, recovery_seconds=seconds, heartbeat_seconds=60
    )


def place_in(bucket: Bucket) -> Place:
    return Place(store=bucket, experiment="bench", fingerprint="bench", owner="bench")


def open_at(place: Place, settings: CheckpointSettings) -> Checkpointer:
    return Checkpointer.open(place, settings, numerics={}, announce=lambda _: None)


def saving(checkpointer: Checkpointer, live: dict[str, Tensor]) -> Clocked:
    checkpointer.restore()
    return savers.ours(checkpointer, live)


def reading(place: Place, settings: CheckpointSettings) -> Callable[[], float]:
    """Clock what the next attempt waits for."""

    def read() -> float:
        with open_at(place, settings) as after:
            return clock(after.restore)()

    return read


if __name__ == "__main__":
    main()
