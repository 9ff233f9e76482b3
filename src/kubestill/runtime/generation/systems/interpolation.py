"""A user's own table on a grid as a continuous system: with what lies between its rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem, nearest
from kubestill.runtime.datasets import columns as read
from kubestill.runtime.datasets.canonical import canonical_table
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.datasets.tables import read_table
from kubestill.runtime.generation.systems.domain import Domain
from kubestill.runtime.generation.systems.inputs import Continuous, Floats
from kubestill.runtime.generation.systems.system import Output, System
from kubestill.runtime.generation.systems.taylor import Taylor

BETWEEN = ("linear", "previous", "nearest")
ROUNDING = 2.0**-48
"""Bounds what `solve` loses in float64 for each input, relatively to the table's largest number."""


class InterpolatedTable(System):
    """A Parquet or CSV table on a complete grid, with what lies between its rows.

    Args:
        source: Path, glob, folder or URI of Parquet or CSV files.
        target: Column to look up, numeric.
        features: Numeric columns to look it up by; empty uses all others.
        between: `linear` interpolates along each input; `previous` keeps the number at the last
            grid point that is not above an input, `nearest` that at the closest (of two as close,
            the upper).
    """

    name = "interpolated-table"

    def __init__(
        self,
        source: str,
        target: str,
        features: list[str] = [],  # noqa: B006
        between: str = "linear",
    ) -> None:
        if between not in BETWEEN:
            raise InvalidInput([Problem("between", between, nearest(between, BETWEEN))])
        found = read_table(
            source, target=target, features=features, task="regression", complete=True
        )
        names = [column.name for column in found.schema.features]
        kinds = {c.name: c.kind for c in found.schema.columns if c.name in (*names, target)}
        if wrong := sorted(name for name, kind in kinds.items() if kind != "numeric"):
            remedy = "is not numeric: nothing lies between its values; use the system 'table'"
            raise InvalidInput([Problem("features", wrong, remedy)])
        columns = tuple(c for c in found.schema.columns if c.name in kinds)
        schema = Schema(columns=columns, task="regression")
        tables = list(found.tables(schema.names))
        for table in tables:
            canonical_table(table, schema)  # Refuses infinite numbers, missing targets.
        # Not as a dataset stores them: in float32 it would be another function.
        frame = {
            name: np.concatenate([read.floats(t.column(name), np.float64) for t in tables])
            for name in kinds
        }
        rows = len(frame[target])
        placed = [np.unique(frame[name], return_inverse=True) for name in names]
        self._knots = {name: knots for name, (knots, _) in zip(names, placed, strict=True)}
        shape = tuple(len(knots) for knots in self._knots.values())
        index = np.ravel_multi_index([place for _, place in placed], shape)
        count, different = int(np.prod(shape)), len(np.unique(index))
        if rows != count or different != count or min(shape) < 2:
            remedy = (
                f"{rows:,} rows, {different:,} of them different, are no complete grid of "
                f"{' x '.join(map(str, shape))} points with two and more along each input; add "
                "what is missing, or use the system 'table'"
            )
            raise InvalidInput([Problem("source", source, remedy)])
        self._values = np.empty(count)
        self._values[index] = frame[target]
        self._values = self._values.reshape(shape)
        self.domain = Domain(
            [Continuous(name=n, low=k[0], high=k[-1]) for n, k in self._knots.items()]
        )
        self.output = Output(name=target)
        ends = {
            "previous": {name: knots[1:] for name, knots in self._knots.items()},
            "nearest": {name: k[:-1] / 2 + k[1:] / 2 for name, k in self._knots.items()},
        }
        self._steps = ends.get(between)
        """Where each number of a piecewise constant table begins, but the first; None where it is
        interpolated."""
        if self._steps is None:
            self.enclose = None  # pyright: ignore
        else:
            self.expand = None  # pyright: ignore

    @property
    def table_bytes(self) -> int:
        """Size of the table in float32."""
        return self._values.size * 4

    @property
    def breaks(self) -> Mapping[str, Floats]:  # pyright: ignore
        """Between these the solution is one polynomial, or one number."""
        return self._steps or self._knots

    def solve(self, inputs: pd.DataFrame) -> Floats:
        """Interpolate, or look up: [N]."""
        points = {name: inputs[name].to_numpy(np.float64) for name in self._knots}
        if self._steps is not None:
            return self._values[tuple(self._pieces(inputs))]
        cells = {name: self._cell(name, at) for name, at in points.items()}
        found = self._corners(cells)
        for name, at in points.items():
            knots, cell = self._knots[name], cells[name]
            share = (at - knots[cell]) / (knots[cell + 1] - knots[cell])
            found = [a + share * (b - a) for a, b in zip(found[::2], found[1::2], strict=True)]
        return found[0]

    def enclose(  # pyright: ignore
        self, lower: pd.DataFrame, upper: pd.DataFrame
    ) -> tuple[Floats, Floats]:
        """Enclose a piecewise constant table, exactly: by all numbers that a box meets."""
        first, last = (np.stack(self._pieces(ends), 1) for ends in (lower, upper))
        met = [
            self._values[tuple(slice(a, b + 1) for a, b in zip(*ends, strict=True))]
            for ends in zip(first, last, strict=True)
        ]
        return np.array([one.min() for one in met]), np.array([one.max() for one in met])

    def _pieces(self, inputs: pd.DataFrame) -> list[NDArray[np.int64]]:
        """Return which number of a piecewise constant table counts, along each input: [N] each."""
        assert self._steps is not None
        return [
            np.searchsorted(steps, inputs[name].to_numpy(np.float64), side="right")
            for name, steps in self._steps.items()
        ]

    def expand(self, inputs: Mapping[str, Taylor]) -> Taylor:  # pyright: ignore
        """Enclose it exactly within a cell of the grid, and by the whole table's range across."""
        points = {name: inputs[name] for name in self._knots}
        cells = {name: self._cell(name, x.value) for name, x in points.items()}
        found: list[Any] = self._corners(cells)
        crossing = np.zeros_like(next(iter(points.values())).gradient)
        for name, x in points.items():
            knots, cell = self._knots[name], cells[name]
            across = (x.low < knots[cell]) | (x.high > knots[cell + 1])
            crossing += across[:, None] * np.abs(x.gradient)
            share = (x - knots[cell]) / (knots[cell + 1] - knots[cell])
            found = [a + share * (b - a) for a, b in zip(found[::2], found[1::2], strict=True)]
        largest = float(np.abs(self._values).max())
        bottom, top = self._values.min(), self._values.max()
        rounding = ROUNDING * len(points) * largest
        return found[0].within(bottom, top, crossing).widened(rounding)

    def _cell(self, name: str, at: Floats) -> NDArray[np.int64]:
        knots = self._knots[name]
        return np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)

    def _corners(self, cells: Mapping[str, NDArray[Any]]) -> list[Floats]:
        """Return the table at the corners of cells, [N] each, the first input varying fastest."""
        sides = itertools.product((0, 1), repeat=len(cells))
        return [
            self._values[
                tuple(cell + s for cell, s in zip(cells.values(), reversed(side), strict=True))
            ]
            for side in sides
        ]
