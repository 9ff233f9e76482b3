"""Feature rows as plain arrays by how they may be varied, which is all a generator sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
RowNumbers = NDArray[np.int64]

CHUNK_ROWS = 65_536
"""Rows measured at a time, to bound the memory of temporaries."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor column."""

    values: NDArray[np.float32]
    """[N, prod(shape)]; NaN where missing."""
    shape: tuple[int, ...]
    """Shape of one row's tensor."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """N rows of features."""

    numeric: Floats
    """[N, D]; NaN where missing."""
    codes: Codes
    """[N, C]: booleans and categories as integers; -1 where missing."""
    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, rows: RowNumbers) -> Frame:
        """Return copies of these rows, in this order."""
        return Frame(
            numeric=self.numeric[rows],
            codes=self.codes[rows],
            tensors=tuple(Tensor(values=t.values[rows], shape=t.shape) for t in self.tensors),
        )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Where the values of some columns lie: each entry [D]."""

    low: Floats
    high: Floats
    mean: Floats
    std: Floats
    """Population standard deviation; 1 for a constant column, so that it can divide."""
    integer: NDArray[np.bool_]
    """Whether all values are whole numbers, so that new ones must be as well."""

    def valid(self, values: Floats) -> Floats:
        """Return values [N, D] inside the observed range, whole where the column is; NaN stays."""
        return np.clip(np.where(self.integer, np.rint(values), values), self.low, self.high)


class Originals(Frame):
    """The rows that a generator starts from, with the statistics of each column."""

    @cached_property
    def numeric_spread(self) -> Spread:
        """Of each numeric column."""
        return spread(self.numeric)

    @cached_property
    def tensor_spreads(self) -> tuple[Spread, ...]:
        """One for each tensor column, over all of its elements: entries [1]."""
        return tuple(
            replace(spread(tensor.values.reshape(-1, 1)), integer=np.array([False]))
            for tensor in self.tensors
        )


def spread(values: NDArray[np.floating]) -> Spread:
    """Measure the columns of `values` [N, D], ignoring NaN; a column without any is 0 ± 1."""
    chunks = [values[at : at + CHUNK_ROWS] for at in range(0, len(values), CHUNK_ROWS)]
    low = np.fmin.reduce([np.fmin.reduce(c, axis=0) for c in chunks]).astype(np.float64)
    high = np.fmax.reduce([np.fmax.reduce(c, axis=0) for c in chunks]).astype(np.float64)
    count = np.maximum(sum((~np.isnan(c)).sum(axis=0) for c in chunks), 1)
    mean = sum(np.nansum(c, axis=0, dtype=np.float64) for c in chunks) / count
    square = sum(np.nansum((c - mean) ** 2, axis=0, dtype=np.float64) for c in chunks) / count
    return Spread(
        low=np.nan_to_num(low),
        high=np.nan_to_num(high),
        mean=mean,
        std=np.where(high > low, np.sqrt(square), 1.0),
        integer=np.logical_and.reduce(
            [(np.isnan(c) | (c == np.rint(c))).all(axis=0) for c in chunks]
        ),
    )
