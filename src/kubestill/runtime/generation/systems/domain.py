"""Define the inputs that a system accepts, and cover them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kubestill.errors import Problems, nearest
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.generation.systems.inputs import Continuous, Field, Floats, Indices, Input

MAX_GRID_ROWS = 10**12


class Domain:
    """The product of named inputs.

    Args:
        inputs: In the order of the columns.

    Raises:
        InvalidInput: Duplicate names, empty or unbounded inputs; all of them.
    """

    def __init__(self, inputs: Sequence[Input]):
        problems = Problems()
        names = [given.name for given in inputs]
        if not names:
            problems.add("inputs", [], "give at least one")
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.add("inputs", name, "is there more than once; rename the others")
        for given in inputs:
            given.check(problems)
        problems.raise_if_any()
        self.inputs = tuple(inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(given.name for given in self.inputs)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that store the inputs in a dataset."""
        return tuple(given.column for given in self.inputs)

    @property
    def width(self) -> int:
        """Unit numbers that one row takes."""
        return sum(given.width for given in self.inputs)

    @property
    def grid_rows(self) -> int | None:
        """Number of different rows; None if an input is continuous or a field."""
        levels = [given.levels for given in self.inputs]
        known = [count for count in levels if count is not None]
        return math.prod(known) if len(known) == len(levels) else None

    def at(self, unit: Floats) -> pd.DataFrame:
        """Turn unit numbers [N, width], each inside (0, 1), into N rows of inputs."""
        columns: dict[str, Any] = {}
        start = 0
        for given in self.inputs:
            values = given.at(unit[:, start : start + given.width])
            columns[given.name] = values if values.ndim == 1 else list(values)
            start += given.width
        return pd.DataFrame(columns)

    def points(self, asked: int | Mapping[str, int] | None = None, *, rows: int) -> dict[str, int]:
        """Return how many points a grid has along each input.

        Args:
            asked: For every continuous input, or by name; discrete inputs take all their levels
                unless they are named.
            rows: What is not asked for gets as many points, equal for all, as keep the grid within
                this many rows.

        Raises:
            InvalidInput: Unknown names, fewer than one point, a field, more than 10^12 rows.
        """
        problems = Problems()
        named = dict(asked) if isinstance(asked, Mapping) else {}
        for name, count in named.items():
            if name not in self.names:
                problems.add(f"points.{name}", count, nearest(name, self.names))
        if isinstance(asked, int) and asked < 1:
            problems.add("points", asked, "give at least one")
        found: dict[str, int | None] = {}
        for given in self.inputs:
            if isinstance(given, Field):
                remedy = f"{given.name} is a field and has no grid; use the method random or sobol"
                problems.add("points", asked, remedy)
            every = asked if isinstance(asked, int) and given.levels is None else given.levels
            found[given.name] = named.get(given.name, every)
            count = found[given.name]
            if count is not None and not 1 <= count <= (given.levels or count):
                remedy = f"give 1 to {given.levels}" if given.levels else "give at least one"
                problems.add(f"points.{given.name}", count, remedy)
        problems.raise_if_any()
        taken = math.prod(count for count in found.values() if count is not None)
        free = sum(count is None for count in found.values())
        each = max(2, math.floor((rows / taken) ** (1 / free) + 1e-9)) if free else 0
        points = {name: each if count is None else count for name, count in found.items()}
        if math.prod(points.values()) > MAX_GRID_ROWS:
            remedy = "more than 10^12 rows: lower the points, or use sobol or random"
            problems.add("points", points, remedy)
        problems.raise_if_any()
        return points

    def grid(self, rows: Indices, points: Mapping[str, int]) -> pd.DataFrame:
        """Return rows number `rows` [N] of a grid with these `points`, the last input fastest."""
        shape = tuple(points[name] for name in self.names)
        index = np.unravel_index(rows, shape)
        return pd.DataFrame(
            {
                given.name: given.on_grid(where.astype(np.int64), size)
                for given, where, size in zip(self.inputs, index, shape, strict=True)
            }
        )

    def complete(self, points: Mapping[str, int]) -> bool:
        """Return whether a grid with these points includes every level of the discrete inputs."""
        return all(given.levels in (None, points[given.name]) for given in self.inputs)

    def contains(self, inputs: pd.DataFrame) -> NDArray[np.bool_]:
        """Return which rows lie inside: [N]."""
        inside = np.ones(len(inputs), bool)
        for given in self.inputs:
            inside &= given.contains(stacked(inputs[given.name]))
        return inside

    def describe(self) -> list[str]:
        """Return one line for people about each input."""
        return [_line(given) for given in self.inputs]


def stacked(values: Any) -> NDArray[Any]:
    """Return a column as an array: [N], or [N, *shape] where a cell is a field."""
    if len(values) and isinstance(values.iloc[0], np.ndarray):
        return np.stack(values.to_list())
    return values.to_numpy()


def _line(given: Input) -> str:
    if isinstance(given, Continuous):
        unit = f" {given.unit}" if given.unit else ""
        low, high = (f"{end:.12g}" for end in given.bounds)
        return f"{given.name}: {low} to {high}{unit}, {given.mapping}"
    if given.levels is None:
        return f"{given.name}: a field {list(given.column.shape)} from {given.width} numbers"
    return f"{given.name}: {given.levels} values"
