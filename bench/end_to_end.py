"""What saving costs a large training end to end: one core trains, the other one does the rest.

Windows of `seconds` with one save and windows without take turns. The training is pinned to one
core; the saver's threads and the storage emulator to another, since a real bucket would not take
processor time of the training.

Windows half a minute apart differ by more than a save costs. So two figures from within the windows
with a save stand beside the slow-down: how long training stood still, and how its steps beside the
writing compare with those after it, a few seconds later.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

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


class Cost(NamedTuple):
    """What one save cost."""

    stood: float
    """Seconds that training stood still."""
    spent: float
    """Processor seconds of the other threads."""
    beside: float
    """How many times as long a step took beside the writing as after it."""


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
            costs: list[Cost] = []

            def saving() -> float:
                done, before = len(costs) + 1, other_threads_seconds()
                view = TrainingState(self._live, {"step": done})
                save = partial(checkpointer.save, view, kind="recovery", epoch=0)
                first = self._train(1)
                stood = clock(partial(save, step=done, examples=done))()
                steps = self._train(self._steps - 1)
                checkpointer.flush()
                behind = checkpointer.report().seconds_behind
                spent = other_threads_seconds() - before
                costs.append(Cost(stood, spent, early_over_late(steps, behind)))
                return sum(first) + stood + sum(steps)

            def without() -> None:
                self._train(self._steps)

            with pinned(self._train_on):
                turns = take_turns({"without": clock(without), "with": saving}, windows)
        gigabytes = sum(tensor.nbytes for tensor in self._live.values()) / 1e9
        name = f"{gigabytes:.1f} GB every {self._seconds:g} s to {where}"
        typical = Cost(*(statistics.median(values) for values in zip(*costs[1:], strict=True)))
        still = 100 * typical.stood / turns.median("without")
        after = "the steps after it, in the same window"
        return [
            *slow_down(name, turns, bar=3.5, peer=peer),
            Measure(name=f"{name}: of which standing still", value=still, unit="%", peer=""),
            Measure(
                name=f"{name}: a step beside the writing",
                value=typical.beside,
                unit="times",
                peer=after,
            ),
            Measure(
                name=f"{name}: saver's processor seconds",
                value=typical.spent / gigabytes,
                unit="s/GB",
                peer="",
            ),
        ]

    def _train(self, steps: int) -> list[float]:
        """Return the seconds of each step."""
        step = clock(lambda: savers.train_step(self._model, self._optimizer, self._rows))
        return [step() for _ in range(steps)]


def early_over_late(steps: list[float], until: float) -> float:
    """Return the mean of the steps that began before `until` seconds over that of the others.

    No more than half of the time counts as early, however slow the store is.
    """
    until = min(until, sum(steps) / 2)
    begun = list(itertools.accumulate(steps, initial=0.0))[:-1]
    early = [step for step, at in zip(steps, begun, strict=True) if at < until]
    late = [step for step, at in zip(steps, begun, strict=True) if at >= until]
    return statistics.mean(early) / statistics.mean(late)


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
