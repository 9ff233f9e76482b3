"""What saving costs a large training end to end: one core trains, the other one does the rest.

Windows of `seconds` with one save and windows without take turns. The training is pinned to one
core; the saver's threads and the storage emulator to another, since a real bucket would not take
processor time of the training.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch

from bench import savers
from bench.harness import clock, slow_down, take_turns
from bench.results import Measure
from emulators import gcs_emulator
from kubestill.runtime.checkpoints.state import TrainingState

LAYERS, BATCH = 4, 64
BUCKET = "bench-end-to-end"


def measure(millions: int, windows: int, seconds: float, folder: str | None) -> list[Measure]:
    """Return the slow-downs, with checkpoints on disk and in a bucket."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("needs two processor cores: one to train, one to save")
    torch.set_num_threads(1)
    training = Training(millions, seconds, train_on=cores[0], save_on=cores[1])
    with tempfile.TemporaryDirectory(dir=folder) as disk:
        found = training.measure("disk", disk, windows, "same training, no saves")
    with pinned(cores[1]), gcs_emulator() as emulator:
        emulator.create_bucket(BUCKET)
        os.environ["STORAGE_EMULATOR_HOST"] = emulator.host
        peer = "same; beside training on both cores the emulator alone costs 24%"
        return found + training.measure("gs", f"gs://{BUCKET}", windows, peer)


class Training:
    """A training whose windows last about `seconds`."""

    def __init__(self, millions: int, seconds: float, *, train_on: int, save_on: int):
        width = math.isqrt(millions * 1_000_000 // LAYERS)
        self._model, self._optimizer = savers.build(LAYERS, width)
        self._rows = torch.randn(BATCH, width)
        self._live = savers.state_of(self._model, self._optimizer)
        self._seconds, self._train_on, self._save_on = seconds, train_on, save_on
        with pinned(train_on):
            self._train(2)
            self._steps = max(round(seconds / (clock(lambda: self._train(5))() / 5)), 2)

    def measure(self, where: str, root: str, windows: int, peer: str) -> list[Measure]:
        # Threads inherit the core on which they are started.
        with pinned(self._save_on), savers.open_checkpointer(root) as checkpointer:
            done = 0
            spent: list[float] = []

            def saving() -> None:
                nonlocal done
                done += 1
                self._train(1)
                view = TrainingState(self._live, {"step": done})
                checkpointer.save(view, kind="recovery", step=done, epoch=0, examples=done)
                self._train(self._steps - 1)

            def with_saves() -> float:
                before = other_threads_seconds()
                seconds = clock(saving)()
                checkpointer.flush()
                spent.append(other_threads_seconds() - before)
                return seconds

            def without() -> None:
                self._train(self._steps)

            with pinned(self._train_on):
                turns = take_turns({"without": clock(without), "with": with_saves}, windows)
        gigabytes = sum(tensor.nbytes for tensor in self._live.values()) / 1e9
        name = f"{gigabytes:.1f} GB every {self._seconds:g} s to {where}"
        used = statistics.median(spent) / gigabytes
        return [
            *slow_down(name, turns, bar=3.5, peer=peer),
            Measure(name=f"{name}: saver's processor seconds", value=used, unit="s/GB", peer=""),
        ]

    def _train(self, steps: int) -> None:
        for _ in range(steps):
            savers.train_step(self._model, self._optimizer, self._rows)


def other_threads_seconds() -> float:
    """Return the processor time of all threads but this one."""
    return time.process_time() - time.thread_time()


@contextmanager
def pinned(core: int) -> Generator[None]:
    """Keep this thread, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
