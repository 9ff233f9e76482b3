"""How wrong the surrogate is: on every row of the dataset, between them, and where it is worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.base.random import uniforms
from kubestill.runtime.certification.quantiles import (
    covered_share,
    quantile_bound,
    samples_needed,
    share_above,
)
from kubestill.runtime.certification.truth import Truth, answers, row_errors
from kubestill.runtime.models.predict import Predictor

__all__ = ["OffGrid", "OnData", "as_point", "bounds", "hunt", "off_grid", "on_data", "statistics"]

Floats = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_CHUNK = 1 << 16
_STREAM = 1001
"""Of the random numbers: no covering of a domain uses it."""


@dataclass(frozen=True, kw_only=True)
class OnData:
    """Errors on all rows of the dataset."""

    errors: Floats
    """[N], the largest of a row's outputs; 1 where a class is wrong."""
    mean: float
    """Over rows and outputs."""
    rms: float
    """Root mean square over rows and outputs."""
    spread: float
    """Standard deviation of the solution, over rows and outputs: the scale of `rms`."""
    relative: float
    """Mean over rows of |error| / |solution|, L2 over the outputs; 0 where there is one output."""

    @property
    def worst(self) -> int:
        """Row number of the largest error; of many as large, as with classes, the middle one."""
        largest = np.flatnonzero(self.errors == self.errors.max())
        return int(largest[len(largest) // 2])


def on_data(predictor: Predictor, raw: NDArray[np.float32], labels: NDArray[Any]) -> OnData:
    """Compare with every label; classes int64 [N], values [N, T]."""
    classes = predictor.spec.task != "regression"
    errors, total, squares, relative = np.empty(len(raw)), 0.0, 0.0, 0.0
    sums = np.zeros(2)
    for start in range(0, len(raw), _CHUNK):
        part = slice(start, start + _CHUNK)
        known = np.asarray(labels[part], np.float64).reshape(len(raw[part]), -1)
        told = answers(predictor, raw[part])
        apart = np.abs(known - told) if not classes else (known != told).astype(np.float64)
        errors[part] = row_errors(known, told, classes=classes)
        total, squares = total + apart.sum(), squares + np.square(apart).sum()
        sums += known.sum(), np.square(known).sum()
        norms = np.sqrt(np.square(known).sum(1))
        relative += (np.sqrt(np.square(apart).sum(1)) / np.where(norms > 0, norms, 1.0)).sum()
    outputs = 1 if classes else labels.reshape(len(labels), -1).shape[1]
    count = len(raw) * outputs
    mean, square = sums / count
    return OnData(
        errors=errors,
        mean=total / count,
        rms=float(np.sqrt(squares / count)),
        spread=float(np.sqrt(max(square - mean**2, 0.0))),
        relative=relative / len(raw) if outputs > 1 else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class OffGrid:
    """Errors on random points of the domain."""

    unit: Floats
    """[n, width]"""
    inputs: pd.DataFrame
    errors: Floats
    """[n]"""
    mean: float
    """Over points and outputs."""


def off_grid(truth: Truth, samples: int, *, seed: int) -> OffGrid:
    """Solve and predict independent random points."""
    unit = uniforms(seed, _STREAM, 0, samples, width=truth.system.domain.width)
    inputs = truth.system.domain.at(unit)
    solved, told = truth.solve(inputs), truth.predict(inputs)
    classes = bool(truth.system.output.classes)
    errors = row_errors(solved, told, classes=classes)
    mean = errors.mean() if classes else np.abs(solved - told).mean()
    return OffGrid(unit=unit, inputs=inputs, errors=errors, mean=float(mean))


def hunt(truth: Truth, found: OffGrid, count: int, *, seed: int) -> tuple[pd.DataFrame, float]:
    """Look around the worst samples for worse ones, ever closer; return the worst point [1 row].

    Not a random sample any more: it says something about the maximum, and nothing about quantiles.
    """
    generator = np.random.default_rng(seed)
    top = np.argsort(-found.errors)[: max(count, 1)]
    centre, best = found.unit[top], found.errors[top]
    for radius in (0.05, 0.015, 0.005, 0.0015) if count else ():
        moved = np.repeat(centre, 24, axis=0)
        moved = moved + radius * generator.uniform(-1, 1, moved.shape)
        moved = np.concatenate([centre, np.clip(moved, 1e-9, 1 - 1e-9)])
        inputs = truth.system.domain.at(moved)
        errors = row_errors(
            truth.solve(inputs), truth.predict(inputs), classes=bool(truth.system.output.classes)
        )
        which = np.argsort(-errors)[: len(centre)]
        centre, best = moved[which], errors[which]
    return truth.system.domain.at(centre[:1]), float(best[0])


def statistics(errors: Floats, mean: float) -> dict[str, float]:
    """Return count, maximum, 99.9th percentile (of the rows, rounded up) and mean."""
    return {
        "rows": len(errors),
        "max": float(errors.max()),
        "p999": float(np.quantile(errors, 0.999, method="higher")),
        "mean": mean,
    }


def bounds(errors: Floats, tolerance: float, *, confidence: float) -> dict[str, Any]:
    """Return what random samples say of the whole domain, whatever its errors' distribution."""
    above = share_above(errors, tolerance, confidence=confidence) if tolerance else None
    return {
        "confidence": confidence,
        "quantiles": [
            {
                "quantile": quantile,
                "observed": float(np.quantile(errors, quantile)),
                "bound": quantile_bound(errors, quantile, confidence=confidence),
                "samples_needed": samples_needed(quantile, confidence=confidence),
            }
            for quantile in QUANTILES
        ],
        "covered_by_max": covered_share(len(errors), confidence=confidence),
        "above_tolerance": {"observed": above[0], "bound": above[1]} if above else None,
    }


def as_point(inputs: pd.DataFrame) -> dict[str, Any]:
    """Return one row of inputs as JSON; fields as their first numbers."""
    point: dict[str, Any] = {}
    row: Mapping[Any, Any] = inputs.iloc[0].to_dict()
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            point[str(name)] = [float(number) for number in value.ravel()[:4]]
        else:
            point[str(name)] = value if isinstance(value, str) else float(value)
    return point
