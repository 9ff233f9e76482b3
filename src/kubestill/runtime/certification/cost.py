"""What the surrogate saves: bytes against the table, seconds against the vectorised solver."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kubestill.runtime.base.random import uniforms
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.decode import decode_features

__all__ = ["size_ratio", "speed_ratio"]

_SECONDS = 4.0


def size_ratio(weights: int, exceptions: int, table: int, *, what: str) -> dict[str, Any]:
    """Compare bytes; `what` says what the table is."""
    return {
        "table_bytes": table,
        "table": what,
        "surrogate_bytes": weights + exceptions,
        "weights_bytes": weights,
        "exceptions_bytes": exceptions,
        "ratio": table / (weights + exceptions),
    }


def weights_bytes(folder: str) -> int:
    """Return the size of the exported weights."""
    return os.path.getsize(os.path.join(folder, "model.safetensors"))


def speed_ratio(truth: Truth, batch: int) -> dict[str, Any]:
    """Time solver and surrogate in turns, on one thread, each from rows in the form that it takes.

    The solver gets a table of inputs in memory, the surrogate a matrix of them: neither is charged
    for parsing.
    """
    measured: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in sorted({1, batch}):
            unit = uniforms(0, 0, 0, rows, width=truth.system.domain.width)
            inputs = truth.system.domain.at(unit)
            raw = np.ascontiguousarray(decode_features(inputs, truth.predictor.layout))
            solver, surrogate = _in_turns(
                lambda inputs=inputs: truth.system.solve(inputs),
                lambda raw=raw: truth.predictor.logits(raw),
            )
            measured.append(
                {
                    "batch": rows,
                    "solver": solver,
                    "surrogate": surrogate,
                    "ratio": solver / surrogate,
                }
            )
    finally:
        torch.set_num_threads(threads)
    return {"batches": measured, "ratio": measured[-1]["ratio"], "batch": batch, "threads": 1}


def _in_turns(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Return median seconds of each, run alternately after one run to warm up."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    while len(times[0]) < 3 or (len(times[0]) < 30 and time.perf_counter() - begun < _SECONDS / 2):
        for which, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            which()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
