"""What a node's own disk before the bucket saves: until a state is safe, and until it is back.

The state is a model of 10 million float32 parameters with Adam's two moments, 120 MB. The bucket
takes and gives so many MB a second and is else this process's memory; the disk is the folder. What
a kill costs is half of the time between two states, at the default pace, until one is safe, and
until it is read back.

    python -m bench.bench_near [--rounds 5] [--megabytes 50] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench import savers
from bench.harness import Clocked, Turns, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import Place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.stores.base import Content, Entry
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
    write("near", measures(stalls, back, bucket.seconds_behind, disk.seconds_behind))


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
