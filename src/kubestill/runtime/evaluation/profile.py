"""What rows look like, small enough to be kept beside a champion and compared with later rows.

A column becomes a sketch: how much is missing, and a histogram, either over the values themselves
(labels, or numbers with few distinct values) or over the deciles of the rows it was first made
from. A tensor is sketched by the mean and the spread of each row's elements, text by its length.
"""

# pandas comes without types.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kubestill.runtime.base.values import StrictValue
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column

Floats = npt.NDArray[np.float64]

FEW = 20
"""Numbers with at most this many distinct values are counted value by value."""
QUANTILES = 21
"""Kept of a numeric column, evenly spaced from the smallest value to the largest."""
LABELS = 60
"""Kept of a categorical column, most frequent first; what is rarer is pooled."""
MOST_COLUMNS = 100
"""Sketched at most, so that a profile stays some ten kilobytes; later columns are left out."""
MOST_ROWS = 200_000
"""Of all windows together that are sketched, an even share of each."""
LEAST_ROWS = 100
"""Of a window that may show what is usual in its season."""
_DIGITS = 6


class Sketch(StrictValue):
    """One column of some rows."""

    rows: int
    missing: int = 0
    """Rows without a value."""
    counts: dict[str, int] = {}
    """Rows by value, where the column has few values."""
    pooled: int = 0
    """Rows whose value is not among `counts`."""
    most_missing: float = 0.0
    """Largest share of rows without a value in one window: some are without it by their season."""
    least: dict[str, float] = {}
    """Smallest share of each of `counts` in one window, of the target where there were several."""
    quantiles: list[float] = []
    """[QUANTILES] of a numeric column with many values; empty otherwise."""
    edges: list[float] = []
    """[B - 1] ascending inner edges of its histogram; a bin takes in its upper edge."""
    bins: list[int] = []
    """[B] rows in each bin."""

    @property
    def present(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    @property
    def numeric(self) -> bool:
        """Whether this is a column of many different numbers."""
        return bool(self.quantiles)


class Profile(StrictValue):
    """What some rows look like: their columns by name."""

    rows: int
    columns: dict[str, Sketch] = {}
    target: Sketch | None = None


def profile_of(*windows: Dataset) -> Profile:
    """Sketch the features and the target of all windows together, of whatever season they are."""
    total = sum(window.rows for window in windows)
    parts = [columns_of(window, _share(window.rows, total)) for window in windows]
    found = {name: [part[name] for part in parts if name in part] for name in parts[0]}
    target = windows[0].schema.target
    values = found.pop(target.name, None) if target else None
    return Profile(
        rows=total,
        columns={name: _sketch_all(columns) for name, columns in found.items()},
        target=None if values is None else _sketch_all(values, classes=True),
    )


def _share(rows: int, total: int) -> npt.NDArray[np.int64] | None:
    """Return which rows of a window are looked at; None for all."""
    if total <= MOST_ROWS:
        return None
    return np.unique(np.linspace(0, rows - 1, max(1, rows * MOST_ROWS // total)).astype(np.int64))


def _sketch_all(windows: Sequence[pd.Series], *, classes: bool = False) -> Sketch:
    """Sketch one column of all windows, and what is unusual in one and usual in another."""
    whole = sketch(pd.concat(windows, ignore_index=True) if len(windows) > 1 else windows[0])
    alone = [values for values in windows if len(values) >= LEAST_ROWS]
    if len(alone) < 2:
        return whole
    missing = max(float(values.isna().mean()) for values in alone)
    least: dict[str, float] = {}
    if classes and whole.counts:
        shares = [values.dropna().map(_label).value_counts(normalize=True) for values in alone]
        least = {name: min(float(one.get(name, 0.0)) for one in shares) for name in whole.counts}
    return whole.model_copy(update={"most_missing": missing, "least": least})


def columns_of(dataset: Dataset, rows: npt.NDArray[np.int64] | None = None) -> dict[str, pd.Series]:
    """Return the values behind a profile by name: features, two for a tensor, and the target.

    Of text it is the number of characters: what it says is not compared.
    """
    schema = dataset.schema
    wanted = [*schema.features[:MOST_COLUMNS], *([schema.target] if schema.target else [])]
    frame = dataset.to_pandas([column.name for column in wanted])
    if rows is not None:
        frame = frame.iloc[rows].reset_index(drop=True)
    found: dict[str, pd.Series] = {}
    for column in wanted:
        found |= _values(column, frame[column.name])
    return found


def _values(column: Column, values: pd.Series) -> dict[str, pd.Series]:
    if column.kind == "text":
        return {f"length of {column.name}": values.str.len().astype(np.float64)}
    if column.kind != "tensor":
        return {column.name: values}
    rows = np.stack(values.to_list()).astype(np.float64).reshape(len(values), -1)
    if column.role == "target":
        return {column.name: pd.Series(rows[:, 0])}
    return {
        f"mean of {column.name}": pd.Series(rows.mean(axis=1)),
        f"spread of {column.name}": pd.Series(rows.std(axis=1)),
    }


def sketch(values: pd.Series) -> Sketch:
    """Sketch one column."""
    missing = int(values.isna().sum())
    known = values.dropna()
    if is_number(known) and known.nunique() > FEW:
        grid = np.linspace(0, 1, QUANTILES)
        quantiles = np.quantile(known.to_numpy(np.float64), grid)
        edges = [_short(edge) for edge in np.unique(quantiles[2:-2:2])]
        return Sketch(
            rows=len(values),
            missing=missing,
            quantiles=[_short(value) for value in quantiles],
            edges=edges,
            bins=[int(count) for count in _binned(known, edges)],
        )
    counts = known.map(_label).value_counts()
    kept = {str(name): int(count) for name, count in counts.iloc[:LABELS].items()}
    pooled = len(known) - sum(kept.values())
    return Sketch(rows=len(values), missing=missing, counts=kept, pooled=pooled)


def is_number(values: pd.Series) -> bool:
    """Return whether the values are numbers and not truth values."""
    kind = values.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _label(value: Any) -> str:
    return f"{value:.{_DIGITS}g}" if isinstance(value, int | float | np.number) else str(value)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def histogram(reference: Sketch, values: pd.Series) -> tuple[Floats, Floats]:
    """Return [B] counts of the reference and [B] counts of new values, over the reference's bins.

    The last bin of a column of few values holds all other ones.
    """
    known = values.dropna()
    if reference.numeric:
        return np.asarray(reference.bins, np.float64), _binned(known, reference.edges)
    found = known.map(_label).value_counts()
    fresh = [float(found.get(name, 0)) for name in reference.counts]
    return (
        np.asarray([*reference.counts.values(), reference.pooled], np.float64),
        np.asarray([*fresh, len(known) - sum(fresh)]),
    )


def _binned(known: pd.Series, edges: list[float]) -> Floats:
    places = np.searchsorted(np.asarray(edges), known.to_numpy(np.float64), side="left")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.float64)
