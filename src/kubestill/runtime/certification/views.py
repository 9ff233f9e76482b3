"""What the report draws: solution and surrogate side by side, and where the error sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.runtime.certification.certify import Examined
from kubestill.runtime.certification.coverage import numbers
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.generation.systems.inputs import Choice, Continuous, Integer, Levels

Floats = NDArray[np.float64]
Drawn = Continuous | Integer | Levels

BINS = 48


@dataclass(frozen=True, kw_only=True)
class Image:
    """A plane through the worst point: two inputs vary, the others stay as they are there."""

    across: Drawn
    up: Drawn
    x: Floats
    y: Floats
    solution: Floats
    """[y, x]"""
    surrogate: Floats


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through the worst point along one input."""

    along: Drawn
    x: Floats
    at: float
    """Where the worst point is."""
    solution: Floats
    """[x]"""
    surrogate: Floats


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Whole output tensors, the worst first."""

    names: list[str]
    solution: Floats
    """[cases, *shape]"""
    surrogate: Floats


@dataclass(frozen=True, kw_only=True)
class Map:
    """The error in each cell of two inputs, over all that was compared; NaN where none."""

    across: Drawn
    up: Drawn | None
    x: Floats
    """Edges of the cells."""
    y: Floats
    errors: Floats
    """[y, x], the largest; of classes, where any cell has one, the share that disagrees."""
    worst: tuple[float, float]


def image(found: Examined) -> Image | None:
    """Return the plane of the two inputs that the error depends on most; None without two."""
    truth, axes = found.truth, _active_axes(found)
    if truth is None or len(axes) < 2 or truth.system.output.shape:
        return None
    across, up = axes[:2]
    x, y = _places(across, found.side), _places(up, found.side)
    grid = {across.name: np.tile(x, len(y)), up.name: np.repeat(y, len(x))}
    solution, surrogate = _both(truth, found.worst, grid)
    shape = (len(y), len(x))
    return Image(
        across=across,
        up=up,
        x=x,
        y=y,
        solution=solution[:, 0].reshape(shape),
        surrogate=surrogate[:, 0].reshape(shape),
    )


def lines(found: Examined, count: int = 4) -> list[Line]:
    """Return lines through the worst point along the inputs that the error depends on most."""
    truth = found.truth
    if truth is None or truth.system.output.shape:
        return []
    made: list[Line] = []
    for along in _active_axes(found)[:count]:
        x = _places(along, 2 * found.side + 16)
        solution, surrogate = _both(truth, found.worst, {along.name: x})
        at = float(found.worst[along.name].iloc[0])
        made.append(
            Line(along=along, x=x, at=at, solution=solution[:, 0], surrogate=surrogate[:, 0])
        )
    return made


def cases(found: Examined) -> Cases | None:
    """Return the worst tensor and three usual ones; None where outputs are numbers."""
    truth = found.truth
    if truth is None or not truth.system.output.shape:
        return None
    inputs, names = [found.worst], ["the worst"]
    if found.off_grid is not None:
        order = np.argsort(found.off_grid.errors)
        for share, name in ((0.99, "1 in 100"), (0.5, "the median"), (0.01, "the best 1%")):
            inputs.append(found.off_grid.inputs.iloc[[order[int(share * (len(order) - 1))]]])
            names.append(name)
    frame = pd.concat(inputs, ignore_index=True)
    shape = (len(frame), *truth.system.output.shape)
    return Cases(
        names=names,
        solution=truth.solve(frame).reshape(shape),
        surrogate=truth.predict(frame).reshape(shape),
    )


def error_map(found: Examined) -> Map | None:
    """Return the map over the two inputs that the error depends on most."""
    axes = _active_axes(found)
    if found.truth is None or not axes:
        return None
    across, up = axes[0], axes[1] if len(axes) > 1 else None
    values, errors = _compared(found)
    x = _edges(across, values[across.name])
    y = _edges(up, values[up.name]) if up else np.array([0.0, 1.0])
    column = np.clip(np.searchsorted(x, values[across.name], side="right") - 1, 0, len(x) - 2)
    row = np.zeros(len(errors), np.int64)
    if up:
        row = np.clip(np.searchsorted(y, values[up.name], side="right") - 1, 0, len(y) - 2)
    cell, cells = row * (len(x) - 1) + column, (len(y) - 1) * (len(x) - 1)
    counts = np.bincount(cell, minlength=cells)
    if found.truth.system.output.classes:
        shown = np.bincount(cell, errors, minlength=cells) / np.maximum(counts, 1)
    else:
        shown = np.zeros(cells)
        np.maximum.at(shown, cell, errors)
    worst = found.worst.iloc[0]
    return Map(
        across=across,
        up=up,
        x=x,
        y=y,
        errors=np.where(counts > 0, shown, np.nan).reshape(len(y) - 1, len(x) - 1),
        worst=(float(worst[across.name]), float(worst[up.name]) if up else 0.5),
    )


def _compared(found: Examined) -> tuple[dict[str, Floats], Floats]:
    """Return every drawable input of all that was compared, and its errors."""
    layout = found.predictor.layout
    values = {
        given.name: numbers(found.on_rows.raw, layout, given.name) for given in _drawable(found)
    }
    errors = found.on_rows.errors
    if found.off_grid is not None:
        errors = np.concatenate([errors, found.off_grid.errors])
        values = {
            name: np.concatenate([column, found.off_grid.inputs[name].to_numpy(np.float64)])
            for name, column in values.items()
        }
    return values, errors


def _drawable(found: Examined) -> list[Drawn]:
    assert found.truth is not None
    return [
        given
        for given in found.truth.system.domain.inputs
        if isinstance(given, Continuous | Integer | Levels) and given.levels != 1
    ]


def _active_axes(found: Examined) -> list[Drawn]:
    """Return the inputs that can be drawn, first those between whose values the error differs."""
    if found.truth is None:
        return []
    values, errors = _compared(found)
    logs = np.log10(errors + 1e-3 * max(float(errors.max()), 1e-300))

    def explained(given: Drawn) -> float:
        edges = _edges(given, values[given.name])
        which = np.searchsorted(edges, values[given.name], side="right")
        counts = np.bincount(which)
        means = np.bincount(which, logs) / np.maximum(counts, 1)
        return float((counts * np.square(means - logs.mean())).sum())

    return sorted(_drawable(found), key=explained, reverse=True)


def _places(given: Drawn, count: int) -> Floats:
    """Return values along an input, evenly spread as it is mapped."""
    if isinstance(given, Integer | Levels):
        return given.on_grid(np.arange(min(count, given.levels)), min(count, given.levels))
    if given.mapping in ("linear", "log"):
        return given.on_grid(np.arange(count), count)
    return given.at((np.arange(count)[:, None] + 0.5) / count)


def _edges(given: Drawn, values: Floats) -> Floats:
    if isinstance(given, Levels) and given.levels <= BINS:
        levels = np.asarray(given.values, np.float64)
        middle = (levels[1:] + levels[:-1]) / 2
        return np.concatenate([[2 * levels[0] - middle[0]], middle, [2 * levels[-1] - middle[-1]]])
    if isinstance(given, Integer) and given.levels <= BINS:
        return np.arange(given.low, given.high + 2, dtype=np.float64) - 0.5
    low, high = float(values.min()), float(values.max())
    if isinstance(given, Continuous) and given.mapping == "log":
        return np.exp(np.linspace(np.log(low), np.log(high) + 1e-9, BINS + 1))
    return np.linspace(low, high + 1e-9 * (high - low), BINS + 1)


def _both(truth: Truth, at: pd.DataFrame, varied: dict[str, Any]) -> tuple[Floats, Floats]:
    """Return solution and surrogate [N, T] of the worst point with some inputs varied."""
    count = len(next(iter(varied.values())))
    frame = pd.DataFrame({name: [at[name].iloc[0]] * count for name in at.columns})
    frame = frame.assign(**varied)
    for given in truth.system.domain.inputs:
        if isinstance(given, Choice):
            frame[given.name] = frame[given.name].astype(str)
    return truth.solve(frame), truth.predict(frame)
