"""What a model costs to run: parameters, operations, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from kubestill.runtime.models.model import Model

__all__ = ["Cost", "flops_per_example", "latency", "measure_cost"]

WARM_UP = 5
REPEATS = 50
BUDGET_SECONDS = 2.0
"""A batch size is timed for `REPEATS` runs, or until this much time has gone."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs to run, preprocessing included."""

    parameters: int
    flops: int
    """Floating-point operations for one example; a multiply-add counts as two."""
    latency: dict[int, float]
    """Median seconds for a batch of so many rows."""


def measure_cost(model: Model, rows: Sequence[int] = (1, 1024)) -> Cost:
    """Measure the model on the device it is on."""
    return Cost(
        parameters=model.spec.parameters,
        flops=flops_per_example(model),
        latency={count: latency(model, count) for count in rows},
    )


def flops_per_example(model: Model) -> int:
    """Count the matrix products, convolutions and attention of one example."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(_batch(model, 1))
    return counter.get_total_flops()


def latency(model: Model, rows: int) -> float:
    """Return the median seconds that a batch of `rows` takes, from raw rows to outputs."""
    model.eval()
    batch = _batch(model, rows)
    wait = torch.cuda.synchronize if batch.is_cuda else _nothing
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UP):
            model(batch)
        while len(seconds) < REPEATS and sum(seconds) < BUDGET_SECONDS:
            wait()
            start = time.perf_counter()
            model(batch)
            wait()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _batch(model: Model, rows: int) -> torch.Tensor:
    device = model.encoder.mean.device
    return torch.zeros(rows, model.encoder.raw_width, device=device)


def _nothing() -> None:
    """The CPU has nothing to wait for."""
