"""The same scores on parts of the rows: one column's values, or the quarters of a numeric one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kubestill.errors import Problems, nearest
from kubestill.runtime.data.schema import Schema, sort_labels
from kubestill.runtime.evaluation.metrics import score
from kubestill.runtime.evaluation.outcome import Outcome

__all__ = ["Slice", "check_slices", "slice_scores"]

LARGEST = 12
"""Values of a column shown on their own, by rows; the rest is pooled as 'other'."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows where a column takes one value, and every model's scores on them."""

    column: str
    value: str
    rows: int
    scores: Mapping[str, Mapping[str, float]]
    """Model → metric → score."""


def check_slices(slices: Sequence[str], schema: Schema) -> None:
    """Check that every slice names a column with values to slice by.

    Raises:
        InvalidInput: Unknown columns (nearest names offered), repeated ones, tensors.
    """
    problems = Problems()
    columns = {column.name: column for column in schema.columns}
    for index, name in enumerate(slices):
        field = f"slices[{index}]"
        if name not in columns:
            problems.add(field, name, f"no column of this name; {nearest(str(name), columns)}")
        elif columns[name].kind == "tensor":
            problems.add(field, name, "a tensor has no values to slice by; name a plain column")
        elif name in slices[:index]:
            problems.add(field, name, "named twice; give it once")
    problems.raise_if_any()


def slice_scores(
    column: str, values: pd.Series, outcomes: Mapping[str, Outcome]
) -> tuple[Slice, ...]:
    """Score every model on each part of one column.

    Args:
        column: Its name.
        values: [N] its values, in the order of the outcomes' rows.
        outcomes: Model → outcome.
    """
    labels = _parts(values)
    found: list[Slice] = []
    for value in labels.cat.categories:
        mask: npt.NDArray[np.bool_] = np.asarray(labels == value)
        scores = {name: score(outcome.take(mask)) for name, outcome in outcomes.items()}
        found.append(Slice(column=column, value=str(value), rows=int(mask.sum()), scores=scores))
    return tuple(slice_ for slice_ in found if slice_.rows)


def _parts(values: pd.Series) -> pd.Series:
    """Return [N] categories: quarters of a numeric column with many values, else the values."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > LARGEST:
        quarters = pd.Series(pd.qcut(values, 4, duplicates="drop", precision=3))
        names = [f"{part.left:g} to {part.right:g}" for part in quarters.cat.categories]
        return _with_missing(quarters.cat.rename_categories(names))
    text = values.astype("string")
    common = text.value_counts().index[:LARGEST]
    pooled = text.where(text.isin(common) | text.isna(), "other")
    order = list(sort_labels(set(common)))
    if (pooled == "other").any() and "other" not in order:
        order.append("other")
    return _with_missing(pd.Series(pd.Categorical(pooled, categories=order)))


def _with_missing(labels: pd.Series) -> pd.Series:
    if not labels.isna().any():
        return labels
    return labels.cat.add_categories("missing").fillna("missing")
