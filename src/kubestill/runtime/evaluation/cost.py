"""What each of several models costs to run, timed in turns: a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kubestill.runtime.models.predict import Predictor

WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class RunningCost:
    """What one model costs to run, from raw rows to outputs."""

    parameters: int
    """Learned numbers; 0 where nobody can tell, of a foreign model."""
    flops: int
    """Floating-point operations for one row; a multiply-add counts as two. 0 where another library
    computes."""
    bytes: int
    """Size of the weights."""
    latency: Mapping[int, float]
    """Rows in a batch → median seconds."""


def running_costs(
    models: Mapping[str, Predictor],
    *,
    known: Mapping[str, int] | None = None,
    batches: Sequence[int] = (1, 1024),
    rounds: int = 60,
    budget_seconds: float = 6.0,
) -> dict[str, RunningCost]:
    """Measure several models side by side on the device that they are on, with one CPU thread.

    One thread is what a replica gets that serves among others, and what a busy machine disturbs
    least.

    Args:
        models: Name → predictor.
        known: Name → operations for one row, where they were counted before.
        batches: Rows in a batch.
        rounds: Every round times every model once; the median over rounds counts.
        budget_seconds: No new round begins after this long; 5 rounds are the least.
    """
    latency: dict[str, dict[int, float]] = {}
    for name, predictor in models.items():
        # Whoever answers elsewhere may charge for it, and is not asked for the sake of the time.
        told = {rows: predictor.latency(rows) for rows in batches}
        latency[name] = {rows: seconds for rows, seconds in told.items() if seconds is not None}
    here = {name: predictor for name, predictor in models.items() if not latency[name]}
    share = budget_seconds / len(batches)
    with _one_thread():
        for rows in batches:
            for name, seconds in _in_turns(here, rows, rounds, share).items():
                latency[name][rows] = seconds
    return {
        name: RunningCost(
            parameters=predictor.spec.parameters,
            flops=(known or {}).get(name) or (_count(predictor) if name in here else 0),
            bytes=predictor.model.bytes,
            latency=latency[name],
        )
        for name, predictor in models.items()
    }


def _count(predictor: Predictor) -> int:
    # Counting imports torch's compiler, for two seconds.
    from kubestill.runtime.models.cost import flops_per_example

    return flops_per_example(predictor.model)


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_turns(
    models: Mapping[str, Predictor], rows: int, rounds: int, budget: float
) -> dict[str, float]:
    names = list(models)
    if not names:
        return {}
    inputs = {name: _zeros(models[name], rows) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    with torch.inference_mode():
        for turn in range(-WARM_UP, rounds):
            if turn >= 5 and time.perf_counter() - begun > budget:
                break
            # A new first one every round: whoever comes after a large model finds cold caches.
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                spent = _time(models[name], inputs[name])
                if turn >= 0:
                    seconds[name].append(spent)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _zeros(predictor: Predictor, rows: int) -> torch.Tensor:
    device = predictor.model.encoder.mean.device
    return torch.zeros(rows, predictor.layout.width, device=device)


def _time(predictor: Predictor, batch: torch.Tensor) -> float:
    start = time.perf_counter()
    predictor.model(batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return time.perf_counter() - start
